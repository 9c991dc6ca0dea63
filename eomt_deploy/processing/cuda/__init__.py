"""Pre- and post-processing on NVIDIA GPUs."""
