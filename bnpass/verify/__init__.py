"""Compare two models numerically: do they compute the same, as far as their precision goes."""

from bnpass.verify.memory import fits
from bnpass.verify.result import OutputComparison, Status, Verification
from bnpass.verify.verifier import verify

__all__ = ["OutputComparison", "Status", "Verification", "fits", "verify"]
