"""Ways to a tumour mask that stands as truth: FLAB in a volume of interest, thresholds, and a consensus of masks."""
