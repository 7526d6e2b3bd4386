"""Bring a model that is older than the ops of an expansion up to their version."""

from bnpass.expansion.upgrade.convert import upgrade

__all__ = ["upgrade"]
