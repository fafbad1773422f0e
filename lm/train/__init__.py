"""The trainer: optimizer, state, step, checkpoints, loop."""
