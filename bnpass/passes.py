"""Passes for any onnx_ir pass manager."""

from collections.abc import Callable

import onnx_ir as ir

from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Collectives, Expanded
from bnpass.folding.inference import set_inference_mode
from bnpass.folding.merging.result import Merged
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded
from bnpass.folding.solver import Solver
from bnpass.graph.kept import Kept
from bnpass.ops import DOMAIN

__all__ = ["CoalesceAllReduce", "ExpandSyncBatchNorm", "FoldBatchNorm"]


class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold inference batch normalization and per-channel affines into the linear ops around them.

    Parallel and sequential linear ops become one where that is no more work. Every edit is checked locally in float64
    before it is made. After a call, ``folded`` and ``kept`` say what happened to each node, ``merged`` and ``apart``
    which linear ops became one, and which sums could not, and ``idle`` which nodes changed nothing and are gone.

    Example:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17]>
        ... g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}, float[2] s = {2, 3}>
        ... { t = MatMul(x, w)  y = Mul(t, s) }''')
        >>> FoldBatchNorm()(model).modified
        True
        >>> [node.op_type for node in model.graph]
        ['MatMul']
    """

    def __init__(
        self, options: FoldOptions | None = None, progress: Callable[[str, float], None] | None = None
    ) -> None:
        super().__init__()
        self.options = options or FoldOptions()
        self._progress = progress
        self.folded: tuple[Folded, ...] = ()
        self.kept: tuple[Kept, ...] = ()
        self.merged: tuple[Merged, ...] = ()
        self.apart: tuple[Kept, ...] = ()
        self.idle: tuple[str, ...] = ()
        self.largest_error = 0.0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold ``model`` in place.

        Raises:
            VerificationError: An edit failed its local check, which is a bug in bnpass.
        """
        switched = self.options.inference and set_inference_mode(model)
        solver = Solver(model, self.options, self._progress)
        folded = solver.run()
        if folded and DOMAIN in model.opset_imports:
            from bnpass.ops.bodies import drop_unused_bodies  # most models have none, and importing it takes a while

            drop_unused_bodies(model)
        self.folded, self.kept = tuple(solver.folded), tuple(solver.kept)
        self.merged, self.apart, self.idle = tuple(solver.merged), tuple(solver.apart), tuple(solver.idle)
        self.largest_error = solver.largest_error
        return ir.passes.PassResult(model, modified=switched or folded)


class ExpandSyncBatchNorm(ir.passes.InPlacePass):
    """Expand training batch normalization, and the operators of bnpass, into moments, AllReduce and plain ONNX.

    Each ``BatchNormalization`` in training mode, each ``SyncBatchNormalization`` in any mode, its gradient and
    ``SyncBatchMoments`` become the formulas of docs/operators.md; the collectives are put in one order that all
    replicas follow. After a call, ``expanded``, ``kept`` and ``collectives`` say what happened.

    Example:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17]>
        ... g (float[N, 2] x, float[2] m, float[2] v) => (float[N, 2] y, float[2] rm, float[2] rv)
        ... <float[2] s = {2, 3}, float[2] b = {0, 1}>
        ... { y, rm, rv = BatchNormalization <training_mode = 1> (x, s, b, m, v) }''')
        >>> expand = ExpandSyncBatchNorm(ExpandOptions(group="world"))
        >>> expand(model).modified
        True
        >>> [node.op_type for node in model.graph if node.domain == "bnpass"]
        ['AllReduce']
        >>> expand.collectives
        Collectives(before=1, after=1, depth=1)
    """

    def __init__(self, options: ExpandOptions | None = None) -> None:
        super().__init__()
        self.options = options or ExpandOptions()
        self.expanded: tuple[Expanded, ...] = ()
        self.kept: tuple[Kept, ...] = ()
        self.collectives = Collectives()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand ``model`` in place; its graph is another object afterwards, unless nothing was modified.

        Raises:
            RefusedError: It cannot be expanded exactly; nothing was changed.
            UsageError: An input that is said to be uniform does not exist.
        """
        from bnpass.expansion.expander import expand  # folding does without it

        done = expand(model, self.options)
        self.expanded, self.kept, self.collectives = done.expanded, done.kept, done.collectives
        return ir.passes.PassResult(model, modified=done.modified)


class CoalesceAllReduce(ir.passes.InPlacePass):
    """Let AllReduces that do not wait for each other share one message; ``order`` comes after it, if at all.

    After a call, ``collectives`` says how many there were and are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives = Collectives()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge the AllReduces of ``model`` in place.

        Raises:
            RefusedError: A collective cannot be read.
        """
        from bnpass.collectives.coalesce import coalesce  # likewise

        done = coalesce(model)
        self.collectives = Collectives(done.before, done.after, done.depth)
        return ir.passes.PassResult(model, modified=done.after < done.before)
