"""Sweeps, benchmarks and recipes."""
