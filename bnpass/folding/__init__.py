"""Inference: affines disappear into the weights around them.

The way of a model through this package: ``recognize`` finds every affine, ``cells`` joins neighbours,
``solver`` finds each cell a place to vanish (``rules`` say what an op can do with an affine,
``absorb`` computes and checks the numbers), ``lower`` writes what is left in its cheapest form.
"""
