"""What differs between two models: structure, weights and interface, whatever things are called."""

from bnpass.comparison.compare import compare
from bnpass.comparison.result import Comparison

__all__ = ["Comparison", "compare"]
