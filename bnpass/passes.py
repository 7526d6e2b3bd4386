"""Passes for any onnx_ir pass manager."""

from collections.abc import Callable

import onnx_ir as ir

from bnpass.folding.inference import set_inference_mode
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded
from bnpass.folding.solver import Solver
from bnpass.graph.kept import Kept

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold inference batch normalization and per-channel affines into the linear ops around them.

    Every edit is checked locally in float64 before it is made. After a call, ``folded`` and ``kept`` say what
    happened to each node.

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
        self.largest_error = 0.0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold ``model`` in place.

        Raises:
            VerificationError: An edit failed its local check, which is a bug in bnpass.
        """
        switched = self.options.inference and set_inference_mode(model)
        solver = Solver(model, self.options, self._progress)
        folded = solver.run()
        self.folded, self.kept = tuple(solver.folded), tuple(solver.kept)
        self.largest_error = solver.largest_error
        return ir.passes.PassResult(model, modified=switched or folded)
