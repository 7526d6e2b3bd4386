"""How far the numbers of one side of a comparison may be off: TensorFlow's, or those of a product."""

import numpy as np

from bnpass.semantics.resolved import Resolved
from tests.conformance.layers import meaning
from tests.conformance.layers.approx import SMALLEST, UNIT, Approx
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.meaning import Named
from tests.conformance.layers.replay import Replay
from tests.conformance.layers.replayed_pass import Numerics


class Bounds:
    """How far the numbers of one side may be off.

    Args:
        case: The case.
        start: The variables before the first step.
        is_product: Whether this side is a product of ours; else TensorFlow.
        exact: Whether the product is the reference, which rounds in float64 alone.
    """

    def __init__(self, case: Case, start: Named, *, is_product: bool, exact: bool = False) -> None:
        self._case, self._start = case, start
        layer = meaning.layer(case)
        self._output = "" if exact or case.dtype in {"float32", "float64"} else case.dtype
        numerics = _product_numerics(case, layer, exact) if is_product else _tensorflow_numerics(case, layer)
        # replicas that do not share statistics are each on their own
        self._together = layer.synchronized and not (case.mask and layer.mask_rule == "select")
        count = 1 if self._together else len(case.shares)
        symbolic = case.training == "tensor"
        self._replays = [Replay(layer, numerics, start, case.clip, symbolic) for _ in range(count)]
        self._gradients: dict[str, Approx] = {}

    def step(self, xs: list[Array], dys: list[Array], masks: list[Array] | None, training: bool) -> dict[str, Approx]:
        """Return the results of a step and their errors, with the keys of the products."""
        replicas = range(len(xs))
        results: dict[str, Approx] = {}
        for i, replay in enumerate(self._replays):
            chosen = replicas if self._together else [i]
            given = [[values[r] for r in chosen] for values in (xs, dys)]
            result = replay.step(given[0], given[1], None if masks is None else [masks[r] for r in chosen], training)
            for j, r in enumerate(chosen):
                results |= {f"{r}/y": self._rounded(result.ys[j]), f"{r}/dx": self._rounded(result.dxs[j])}
                self._gradients = {"gamma": result.dgammas[j], "beta": result.dbetas[j]}
                results |= {f"{r}/d{name}": value for name, value in self._gradients.items()}
                results |= {f"{r}/{name}": value for name, value in result.state.items()}
        return results

    def loss(self) -> Approx:
        """Return the regularizers' terms, which grow with abs(gamma) and abs(beta)."""
        state = {name: self._replays[0].state[name] for name in ("gamma", "beta") if name in self._start}
        low = meaning.loss(self._case, {name: np.abs(value.value) for name, value in state.items()})
        high = meaning.loss(self._case, {name: np.abs(value.value) + value.error for name, value in state.items()})
        return Approx(low, high - low + 64 * UNIT["float32"] * low)

    def learn(self) -> dict[str, Approx]:
        """Let gamma and beta learn, and return them."""
        for name in self._start.keys() & self._gradients.keys():
            for replay in self._replays:
                moved = replay.state[name] - self._gradients[name] * self._case.learning_rate
                replay.state[name] = _constrained(self._case, name, moved)
        return {f"0/{name}": value for name, value in self._replays[0].state.items()}

    def _rounded(self, value: Approx) -> Approx:
        """Return an output, which may be rounded to 16 bits at last."""
        if not self._output:
            return value
        return value.off_by(UNIT[self._output] * np.abs(value.value) + SMALLEST[self._output])


def _constrained(case: Case, name: str, moved: Approx) -> Approx:
    """Return what a constraint makes of a value, and twice how far it moves when the value moves by its error."""
    values = [meaning.learnt(case, name, moved.value + side * moved.error, np.zeros(())) for side in (0.0, 1.0, -1.0)]
    spread = 2 * np.max([np.abs(value - values[0]) for value in values], axis=0)
    return Approx(values[0], moved.error + spread + moved.unit * np.abs(values[0]), moved.unit)


def _tensorflow_numerics(case: Case, layer: Resolved) -> Numerics:
    unit = UNIT["float64" if case.dtype == "float64" else "float32"]
    one_pass = layer.synchronized and not (case.mask and layer.mask_rule == "select")
    if case.api == "keras3":
        return Numerics(unit, one_pass)
    # tf_keras makes a float32 tensor of 1 − momentum, whatever the type of the layer (D "float32 decay"); in a graph
    # the fused path has momentum itself as one
    given = [layer.momentum, layer.renorm.momentum if layer.renorm else 1.0]
    graph = UNIT["float32"] * layer.momentum if case.graph and layer.fused else 0.0
    return Numerics(unit, one_pass, 0.0, *(graph + _float32_error(1.0 - momentum) for momentum in given))


def _float32_error(value: float) -> float:
    return abs(float(np.float32(value)) - value)


def _product_numerics(case: Case, layer: Resolved, exact: bool) -> Numerics:
    if exact:
        return Numerics(UNIT["float64"])
    rounding = [_float32_error(value) for value in (layer.epsilon, layer.momentum)]  # ONNX has float attributes
    return Numerics(UNIT["float64" if case.dtype == "float64" else "float32"], False, *rounding)
