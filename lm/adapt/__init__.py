"""Functions on parameter trees: what makes one model out of another."""
