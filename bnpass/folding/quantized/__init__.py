"""Weights and biases that are stored as integers: what an affine does to their scales."""
