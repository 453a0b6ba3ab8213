"""Files to Volume, and back."""
