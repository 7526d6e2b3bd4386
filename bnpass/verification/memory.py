"""How much memory is free, and whether a whole-model run fits into it."""

import os
from pathlib import Path

__all__ = ["available_bytes", "fits"]

# The runtime holds its own copy of the weights, beside the file's bytes, a perturbed copy being
# written, and the float64 weights (twice float32) of the reference.
_COPIES = 6


def available_bytes() -> int:
    """Bytes that can be allocated without swapping, as far as the system tells.

    Returns:
        ``MemAvailable`` of Linux, else the free physical pages, else 4 GiB.

    Example:
        >>> available_bytes() > 0
        True

    """
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def fits(model_bytes: int) -> bool:
    """Tell whether both models can be run as a whole in the memory that is free.

    Args:
        model_bytes: Size of one model, weights included.

    Returns:
        Whether six times that size is below the free memory.

    Example:
        >>> fits(1000)
        True
        >>> fits(1 << 60)
        False

    """
    return _COPIES * model_bytes < available_bytes()
