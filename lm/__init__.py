"""The JAX/Flax home for language models, from raw text to a phone."""
