"""``Loop`` for ``onnx.reference``, which has it wrong."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

from bnpass.verification.windows import Array

__all__ = ["Loop"]

Attribute: TypeAlias = Any  # what an attribute holds is checked by ONNX's schema, not by a type checker


class Loop(OpRun):
    """Loop as ONNX defines it.

    ``onnx.reference`` runs no iteration where the condition is left out, and joins the scan outputs of an iteration
    along an axis that they have already.
    """

    op_domain = ""

    # Set by OpRun from the node's attributes.
    body: Attribute
    _run_body: Callable[..., list[Array]]

    def need_context(self) -> bool:
        """The body reads values of the graph around it."""
        return True

    def _run(
        self,
        M: Array | None,
        cond: Array | None,
        *states: Array,
        context: Mapping[str, Array] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        **_: Attribute,
    ) -> tuple[Array, ...]:
        names = self.body.input_names
        scanned: list[list[Array]] = [[] for _ in self.body.output_names[1 + len(states) :]]
        iteration, going = 0, cond is None or bool(cond.item())
        while going and (M is None or iteration < int(M.item())):
            given = (np.array(iteration, np.int64), np.array(True), *states)
            inputs = {**(context or {}), **dict(zip(names, given, strict=True))}
            after, *values = self._run_body(inputs, attributes=attributes)
            going, iteration = bool(after.item()), iteration + 1
            states = tuple(values[: len(states)])
            for rows, row in zip(scanned, values[len(states) :], strict=True):
                rows.append(row)
        if scanned and not iteration:
            raise ValueError("a Loop without iterations has scan outputs of unknown shape")
        return (*states, *(np.stack(rows) for rows in scanned))
