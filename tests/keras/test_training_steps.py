"""A network with three batch normalizations, trained for five steps in stock ONNX Runtime, keeps step with Keras."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

import bnpass
from bnpass.expansion.options import ExpandOptions
from tests.keras.training_steps import CHANNELS, STEPS
from tests.support.build import model

Arrays = dict[str, NDArray[Any]]

pytestmark = pytest.mark.keras

BLOCK = """
    [conv{i}] c{i} = Conv <pads = [1, 1, 1, 1]> ({x}, w{i}, b{i})
    [bn{i}] n{i}, new_mean{i}, new_var{i} = BatchNormalization
        <training_mode = 1, momentum = 0.9, epsilon = 0.001> (c{i}, scale{i}, B{i}, mean{i}, var{i})
    r{i} = Relu (n{i})"""


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Arrays]:
    target = tmp_path_factory.mktemp("training") / f"{request.param}.npz"
    script = Path(__file__).with_name("training_steps.py")
    done = subprocess.run([sys.executable, script, request.param, target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(target) as file:
        return request.param, dict(file)


def network(found: Arrays) -> ir.Model:
    """Return the network as it comes from a training exporter: statistics go in and out, weights lie in the file."""
    numbers = range(len(CHANNELS))
    inputs = "".join(f", float[{c}] mean{i}, float[{c}] var{i}" for i, c in enumerate(CHANNELS))
    outputs = "".join(f", float[{c}] new_mean{i}, float[{c}] new_var{i}" for i, c in enumerate(CHANNELS))
    blocks = "".join(BLOCK.format(i=i, x=f"r{i - 1}" if i else "x") for i in numbers)
    constants = {}
    for i in numbers:
        constants[f"w{i}"] = found[f"conv{i}_0"].transpose(3, 2, 0, 1).copy()
        constants |= {f"b{i}": found[f"conv{i}_1"], f"scale{i}": found[f"bn{i}_0"], f"B{i}": found[f"bn{i}_1"]}
    text = f"""g (float[N, 3, 12, 12] x{inputs}) => (float[N, {CHANNELS[-1]}] y{outputs}) {{ {blocks}
        p = GlobalAveragePool (r{len(CHANNELS) - 1})
        y = Flatten (p)
    }}"""
    return model(text, constants, opset=15)


@pytest.mark.parametrize("options", [{}, {"group": "world"}, {"group": "world", "as_functions": True}], ids=str)
def test_five_steps(trained: tuple[str, Arrays], options: dict[str, Any]) -> None:
    flavour, found = trained
    correction = int(flavour == "tf_keras")  # rank 4 is fused there, and fused means the sample variance
    result = bnpass.expand(network(found), ExpandOptions(correction=correction, **options))
    assert all(check.ran for check in result.report.checks[:2])
    assert isinstance(result.model, ir.Model)
    session = onnxruntime.InferenceSession(
        ir.to_proto(result.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [f"{kind}{i}" for i in range(len(CHANNELS)) for kind in ("mean", "var")]
    state = {f"{kind}{i}": found[f"bn{i}_{k}"] for i in range(len(CHANNELS)) for k, kind in ((2, "mean"), (3, "var"))}
    for step in range(STEPS):
        feeds = {"x": found[f"x_{step}"].transpose(0, 3, 1, 2).copy(), **state}
        y, *after = session.run(["y", *(f"new_{name}" for name in names)], feeds)
        state = dict(zip(names, after, strict=True))
        np.testing.assert_allclose(y, found[f"y_{step}"], rtol=2e-5, atol=2e-5)
        for name in names:
            np.testing.assert_allclose(state[name], found[f"{name}_{step}"], rtol=2e-5, atol=1e-5, err_msg=name)
