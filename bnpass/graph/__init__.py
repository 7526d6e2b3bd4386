"""What every pass asks of a graph: its nodes, constants, shapes, and the mode of a batch normalization."""
