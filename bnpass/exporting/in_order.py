"""tf2onnx walks through sets; in the order of names, the same model gives the same bytes each time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Let what tf2onnx finds in sets come in the order of names, and number its own names from the beginning."""
    import tf2onnx.rewriter  # noqa: F401  it takes a number when it is loaded
    from tf2onnx import utils
    from tf2onnx.graph import Graph

    def by_name(found: Callable[..., Any]) -> Callable[..., Any]:
        def ordered(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nodes = found(*args, **kwargs)
            return sorted(nodes, key=lambda node: str(node.name)) if len(nodes) > 1 else nodes  # mostly there is one

        return ordered

    with (
        mock.patch.object(Graph, "extract_sub_graph_nodes", by_name(Graph.extract_sub_graph_nodes)),
        mock.patch.object(Graph, "find_output_consumers", by_name(Graph.find_output_consumers)),
        mock.patch.object(utils, "INTERNAL_NAME", 1),
    ):
        yield
