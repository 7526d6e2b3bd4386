"""What is counted: nodes, batch normalizations and bytes, wherever in the model they are."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass import census, model_io
from bnpass.census import Census
from tests.cli import models
from tests.support.build import model, normal

NESTED = """g (float[4] x, bool c) => (float[4] y) {
    y = If (c) <
        then_branch = t () => (float[4] a) { k = Constant <value = float[4] {1, 2, 3, 4}> ()  a = Add (x, k) },
        else_branch = e () => (float[4] b) { b = Mul (x, w) }
    >
}"""

WITH_FUNCTION = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[2, 4] x) => (float[2, 4] y) { z = local.scaled (x)  y = local.scaled (z) }
<domain: "local", opset_import: ["": 17]>
scaled (x) => (y) { k = Constant <value = float[4] {1, 2, 3, 4}> ()  y = Mul (x, k) }"""


def test_nodes_and_bytes() -> None:
    found = census.take(models.two())
    assert found.ops == {"BatchNormalization": 2, "Conv": 2, "Relu": 1}
    assert (found.nodes, found.batch_norms) == (5, 2)
    assert found.constant_bytes == 4 * (4 * 3 * 9 + 4 * 4 * 9 + 2 * 4 * 4)


def test_ops_are_listed_by_name() -> None:
    assert list(census.take(models.two()).ops) == ["BatchNormalization", "Conv", "Relu"]


def test_subgraphs_and_their_constants_count() -> None:
    found = census.take(model(NESTED, {"w": normal(4)}))
    assert found == Census({"Add": 1, "Constant": 1, "If": 1, "Mul": 1}, 32)


def test_functions_count_once() -> None:
    found = census.take(ir.from_proto(onnx.parser.parse_model(WITH_FUNCTION)))
    assert found == Census({"Constant": 1, "Mul": 1, "scaled": 2}, 16)


def test_both_kinds_of_batch_normalization_count() -> None:
    assert Census({"BatchNormalization": 2, "Conv": 7, "SyncBatchNormalization": 3}, 0).batch_norms == 5
    assert Census({}, 0).batch_norms == Census({}, 0).nodes == 0


@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 8), (np.float32, 16), (np.float64, 32)])
def test_bytes_are_those_of_the_type(dtype: type[np.generic], size: int) -> None:
    built = model("g (float[4] x) => (float[4] y) { y = Relu (x) }", {"w": normal(4).astype(dtype)})
    assert census.take(built).constant_bytes == size


def test_external_data_counts_and_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_io.load(models.external(tmp_path))

    def refuse(*_: object) -> None:
        raise AssertionError("counting has read a tensor")

    monkeypatch.setattr("bnpass.model_io.tensors.DataFile.read_into", refuse)
    assert census.take(loaded).constant_bytes == 4 * (16 * 3 * 9 + 4 * 16)
