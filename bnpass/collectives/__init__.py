"""Collectives in a graph: which nodes they are, which of them share a message, and the one order of all."""
