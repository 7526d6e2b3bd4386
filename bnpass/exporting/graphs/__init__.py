"""Graphs of TensorFlow without layer objects: their batch normalization is recognised in the ops themselves.

files.py        a file becomes a GraphDef, a folder a SavedModel
ends.py         inputs and outputs, as named or as found
mode.py         a placeholder that says `training` becomes a constant
flatten.py      functions are inlined, branches that are decided are taken (branches.py)
flat.py         so it has no functions and no variables either:
    freeze.py       in inference they become constants
    collected.py    in training, what the graph says of them   step.py: what a step runs
    state.py        they become inputs, and what is written to them outputs; uses.py: where they are used
refusals.py     what no export can hold, by name
recognize.py    fused.py, formula.py: which ops are a batch normalization; moments.py: of which statistics
replace.py      a marker takes the place of each
trace.py        all of it in order
"""

from bnpass.exporting.graphs.files import read_graph_def
from bnpass.exporting.graphs.saved_model import trace_saved_model
from bnpass.exporting.graphs.trace import trace_graph, trace_graph_def

__all__ = ["read_graph_def", "trace_graph", "trace_graph_def", "trace_saved_model"]
