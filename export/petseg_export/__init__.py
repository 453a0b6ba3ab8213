"""From a checkpoint to the files that run without PyTorch."""
