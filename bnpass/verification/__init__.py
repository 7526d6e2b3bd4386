"""Compare two models numerically: do they compute the same, as far as their precision goes."""

from bnpass.verification.memory import fits
from bnpass.verification.result import OutputComparison, Status, Verification
from bnpass.verification.verifier import verify

__all__ = ["OutputComparison", "Status", "Verification", "fits", "verify"]
