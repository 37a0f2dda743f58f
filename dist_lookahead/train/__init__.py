"""The trainer: data, checkpoints, stopping, and what ties them to the core."""
