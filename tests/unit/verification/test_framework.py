"""A model held against a framework: its own rounding passes, a wrong momentum, epsilon or variance does not."""

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.layers.model import layer_model
from bnpass.ops.bodies import add_bodies
from bnpass.semantics.spec import BatchNormSpec
from bnpass.verification.framework import Call, verify_against
from bnpass.verification.result import Status, Verification
from tests.support.build import model

N, C = 64, 3
MOMENTUM, EPSILON = 0.9, 1e-3


def layer(**arguments: object) -> ir.Model:
    spec = BatchNormSpec("keras3", momentum=MOMENTUM, epsilon=EPSILON, **arguments)  # type: ignore[arg-type]
    found = layer_model(spec.resolve((None, C)), training=True)
    add_bodies(found)
    return found


def in_float32(
    x: np.ndarray, *, momentum: float = MOMENTUM, epsilon: float = EPSILON, ddof: int = 0
) -> dict[str, np.ndarray]:
    """Return what a framework gives that adds up in float32, one number after the other."""
    total = np.zeros(C, np.float32)
    for row in x:
        total = total + row
    mean = total / np.float32(N)
    squares = np.zeros(C, np.float32)
    for row in x:
        squares = squares + (row - mean) ** 2
    var = squares / np.float32(N)
    one = np.float32(1)
    kept, taken = np.float32(momentum), np.float32(1 - momentum)
    return {
        "Y": (x - mean) / np.sqrt(var + np.float32(epsilon)),
        "running_mean": mean * taken,
        "running_var": one * kept + var * np.float32(N / (N - ddof)) * taken,
    }


def judged(offset: float, seed: int, **wrong: float) -> Verification:
    x = (np.random.default_rng(seed).normal(size=(N, C)) + offset).astype(np.float32)
    state = {"scale": np.ones(C), "B": np.zeros(C), "input_mean": np.zeros(C), "input_var": np.ones(C)}
    feeds = {"X": x, **{name: value.astype(np.float32) for name, value in state.items()}}
    return verify_against(layer(), [Call(feeds, in_float32(x, **wrong), [])])  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0, 10_000.0])
@pytest.mark.parametrize("seed", range(5))
def test_sums_in_float32_are_let_pass_however_large_the_mean_is(offset: float, seed: int) -> None:
    found = judged(offset, seed)
    assert found.status is Status.AGREE, found.to_text()
    assert found.reference == "float64"


@pytest.mark.parametrize("offset", [0.0, 3.0])  # with larger means the sums themselves hide an epsilon that is 5 % off
@pytest.mark.parametrize(
    ("wrong", "output"),
    [({"momentum": 0.901}, "running_var"), ({"epsilon": 1.001e-3 * 1.05}, "Y"), ({"ddof": 1}, "running_var")],
    ids=str,
)
def test_a_wrong_argument_is_found(offset: float, wrong: dict[str, float], output: str) -> None:
    found = judged(offset, 0, **wrong)
    assert found.status is Status.MISMATCH
    assert output in {one.name for one in found.outputs if not one.ok}


def test_a_model_that_cannot_run_is_a_mismatch() -> None:
    broken = model("g (float[2] x) => (float[2] y) { y = com.example.Missing (x) }", {})
    found = verify_against(broken, [Call({"x": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32)}, [])])
    assert found.status is Status.MISMATCH
    assert "cannot run" in found.failure


def test_what_is_random_is_listed_and_not_compared() -> None:
    text = "g (float[4] x) => (float[4] y, float[4] z) { y = Relu (x)  u = RandomUniformLike (x)  z = Add (u, x) }"
    x = np.ones(4, np.float32)
    found = verify_against(model(text, {}), [Call({"x": x}, {"y": x, "z": x}, [])])
    assert found.ok
    assert [one.name for one in found.not_compared] == ["z"]
    assert "random" in found.not_compared[0].reason
