"""Figures of two tensors: every element type, strange numbers, and pieces of large ones."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass import model_io
from bnpass.comparison import contents
from bnpass.comparison.contents import Difference, Digests, difference, type_of
from tests.cli.command import python
from tests.support.build import Array

NAN, INF = np.nan, np.inf


def told(x: Array, y: Array) -> Difference:
    return difference(ir.tensor(x), ir.tensor(y))


FLOATS: dict[str, tuple[list[float], list[float], Difference]] = {
    "equal": ([1, 2], [1, 2], Difference(2, 0, 0.0, 0.0)),
    "one": ([1, 2, -4], [1, 2.5, -4], Difference(3, 1, 0.5, 0.125)),
    "signs of zero": ([0.0, 1], [-0.0, 1], Difference(2, 1, 0.0, 0.0)),
    "from zero": ([0, 0], [0, 1], Difference(2, 1, 1.0, None)),
    "nan in both": ([NAN, 1], [NAN, 2], Difference(2, 1, 1.0, 1.0)),
    "nan in one": ([NAN, 1], [1, 1], Difference(2, 1, None, None)),
    "the same infinity": ([INF, 1], [INF, 2], Difference(2, 1, 1.0, 0.0)),
    "infinities": ([INF, 1], [-INF, 1], Difference(2, 1, None, None)),
    "empty": ([], [], Difference(0, 0, 0.0, None)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", FLOATS)
def test_floats(case: str, dtype: type) -> None:
    x, y, expected = FLOATS[case]
    assert told(np.array(x, dtype), np.array(y, dtype)) == expected


def test_integers_are_exact() -> None:
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    assert told(np.array([low, 5]), np.array([high, 5])).max_abs == float(2**64 - 1)
    assert told(np.array([2**62]), np.array([2**62 + 1])).max_abs == 1.0
    assert told(np.array([-3], np.int8), np.array([4], np.int8)).max_abs == 7.0
    assert told(np.array([3], np.uint8), np.array([250], np.uint8)).max_abs == 247.0
    assert told(np.array([True, False]), np.array([True, True])) == Difference(2, 1, 1.0, 1.0)


def test_complex_numbers() -> None:
    assert told(np.array([3 + 4j]), np.array([0j])).max_abs == 5.0
    assert told(np.array([1j], np.complex64), np.array([1j], np.complex64)).differing == 0


def test_four_bits() -> None:
    x, y = (np.array(v, ml_dtypes.int4) for v in ([1, -8, 7], [1, 7, 7]))
    assert told(x, y).differing == 1
    assert Digests()(ir.tensor(x)) != Digests()(ir.tensor(y))


def test_text() -> None:
    x, y = (ir.tensor(v) for v in (["a", "bc"], ["a", "x"]))
    assert difference(x, y) == Difference(2, 1, None, None)
    assert Digests()(x) != Digests()(y)
    assert Digests()(ir.tensor(["ab", "c"])) != Digests()(ir.tensor(["a", "bc"]))


def test_a_digest_knows_type_and_shape() -> None:
    zeros = [ir.tensor(np.zeros(shape, dtype)) for shape in ((4,), (2, 2)) for dtype in (np.float32, np.int32)]
    digests = Digests()
    assert len({digests(tensor) for tensor in zeros}) == 4
    assert digests(zeros[0]) == Digests()(ir.tensor(np.zeros(4, np.float32)))
    assert type_of(zeros[3]) == "INT32[2,2]"


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(1000, dtype=np.float32)
    y = x.copy()
    y[[3, 500, 999]] += [1, -7, 2]
    whole = told(x, y)
    monkeypatch.setattr(contents, "CHUNK", 64)
    assert told(x, y) == whole == Difference(1000, 3, 7.0, 7 / 999)


def test_a_stored_tensor_is_the_same_as_one_in_memory(tmp_path: Path) -> None:
    for dtype in (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT4):
        text = "g () => (float[1] y) { y = Constant <value_float = 1.0> () }"
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
        array = np.arange(4000) % 7
        proto.graph.initializer.append(onnx.helper.make_tensor("w", dtype, [4000], array.tolist()))
        inside = ir.from_proto(proto)
        path = tmp_path / "m.onnx"
        onnx.save(proto, path, save_as_external_data=True, location=f"{dtype}.bin", size_threshold=0)
        stored = model_io.load(path).graph.initializers["w"].const_value
        given = inside.graph.initializers["w"].const_value
        assert stored is not None
        assert given is not None
        assert Digests()(stored) == Digests()(given)
        assert difference(stored, given).differing == 0


LARGE = """
import re, sys
from pathlib import Path
from bnpass.api.diff import diff
found = diff(sys.argv[1], sys.argv[2], check=0)
(weight,) = found.comparison.changed_weights
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(weight.differing, int(peak[1]) // 1024)
"""


def test_large_weights_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Two models of 160 MiB each, which differ in the last element."""
    size = 160 << 20
    text = f"g (float[1] x) => (float[{size // 4}] y) {{ y = Mul (x, w) }}"
    for name, last in (("a", b"\0\0\0\0"), ("b", b"\0\0\x80\x3f")):
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
        tensor = proto.graph.initializer.add(name="w", dims=[size // 4], data_type=1, data_location=1)
        for key, value in (("location", f"{name}.bin"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
        with (tmp_path / f"{name}.bin").open("wb") as file:
            file.truncate(size)
            file.seek(size - 4)
            file.write(last)
    ran = python("-c", LARGE, tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert ran.code == 0, ran.err
    differing, megabytes = map(int, ran.out.split())
    assert differing == 1
    assert megabytes < 240, "a weight was read as a whole"
