"""Sums and chains of linear ops over one value become one linear op: what training kept apart, deployment adds up."""
