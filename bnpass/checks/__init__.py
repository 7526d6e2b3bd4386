"""The layers of checking that a result went through, as they stand in its report."""
