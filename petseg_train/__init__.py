"""Training: cohort, augmentation, networks, checkpoints, evaluation."""
