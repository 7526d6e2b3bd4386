"""The data of `digits_cnn`: scikit-learn's handwritten digits, split once and for all.

1797 grey images of 8 × 8 pixels in ten classes. They ship inside the scikit-learn package: nothing is
downloaded, and nothing here needs TensorFlow.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPLIT_SEED", "TEST_SIZE", "Split", "load_test_split", "load_train_split"]

SPLIT_SEED = 20240
TEST_SIZE = 360


class Split(NamedTuple):
    """Images and their labels, in the same order."""

    x: NDArray[np.float32]
    """NHWC, 8 × 8 × 1, scaled to 0..1."""
    y: NDArray[np.int64]
    """The digit, 0..9."""


def load_train_split() -> Split:
    """Return the 1437 images to train on."""
    return _load()[0]


def load_test_split() -> Split:
    """Return the 360 images that training never sees."""
    return _load()[1]


def _load() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[..., None] / 16.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    return Split(x[train], y[train]), Split(x[test], y[test])
