"""Checkpoints of Hugging Face models, into workdirs and back."""
