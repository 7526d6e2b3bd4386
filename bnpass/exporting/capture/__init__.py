"""Batch normalization is intercepted while a model is traced, and read from the live layer."""
