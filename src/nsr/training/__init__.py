"""The training loop, the optimizer step, checkpoints and health checks."""
