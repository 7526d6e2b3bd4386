"""tf2onnx's optimizers, of which that of Transposes does the same in less time and skips none."""

import copy
from typing import Any
from unittest import mock


def optimized(graph: Any) -> Any:  # noqa: ANN401  a graph of tf2onnx
    """Run tf2onnx's optimizers: all together, or, if one of them fails, each with a copy to go back to."""
    from tf2onnx import optimizer

    chosen = optimizer._get_optimizers() | {"optimize_transpose": _transpose_optimizer()}  # noqa: SLF001
    spare = copy.deepcopy(graph)
    try:
        return optimizer.optimize_graph(graph, catch_errors=False, optimizers=chosen)
    except Exception:  # noqa: BLE001  of whatever kind: that optimizer is left out
        return optimizer.optimize_graph(spare, catch_errors=True, optimizers=chosen)


def _transpose_optimizer() -> Any:  # noqa: ANN401  a class
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    class Thorough(TransposeOptimizer):  # type: ignore[misc]  # tf2onnx has no types
        graph_been_opt: bool
        """A property of tf2onnx: whether all optimizers run once more."""

        @property
        def nodes(self) -> Any:  # noqa: ANN401
            """Those that it looks for; it begins anew after each change, and all others cost most of its time."""
            return (node for node in self._g.get_nodes() if node.type in {"Reshape", "Transpose"})

        def pre_optimize_action(self) -> None:
            """Sort once, not after each Reshape of a constant: every depthwise convolution has one."""
            with mock.patch.object(self._g, "topological_sort") as sort:
                super().pre_optimize_action()
            if sort.called:
                self._g.topological_sort(self._g.get_nodes())

        def post_optimize_action(self) -> None:
            """Make Reshapes of Transposes that move nothing, once no more of them cancel.

            tf2onnx walks through the list that it takes them out of, and skips what comes next: here through a copy.
            Optimizers that come before the one that joins Reshapes then have another run.
            """
            if self.graph_been_opt:
                return
            found = list(self.nodes)
            with mock.patch.object(type(self), "nodes", found):
                super().post_optimize_action()
            self.graph_been_opt = any(node.graph is None for node in found)

    return Thorough
