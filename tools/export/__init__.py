"""Turns the model of a workdir into a file that runs without JAX and without us."""
