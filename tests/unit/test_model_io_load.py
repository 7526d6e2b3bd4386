"""Loading: what is refused, with which words, and that nothing outside the folder is opened."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from bnpass import errors
from bnpass.model_io import load

FLOAT = onnx.TensorProto.FLOAT
SECRET = np.arange(64, dtype=np.float32) + 0.5


def tensor(name: str, count: int = 64, fill: float = 1.0) -> onnx.TensorProto:
    data = np.full(count, fill, np.float32).tobytes()
    return helper.make_tensor(name, FLOAT, [count], data, raw=True)


def external(name: str, location: str = "w.bin", **entries: object) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=FLOAT, dims=[64])
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def model(
    *initializers: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None, count: int = 64
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [count])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        list(initializers) or [tensor("w", count)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def constant(proto: onnx.TensorProto, output: str = "w") -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=proto)


def with_subgraph(proto: onnx.TensorProto) -> onnx.ModelProto:
    """An If whose branch holds the tensor as its initializer."""

    def branch(name: str) -> onnx.GraphProto:
        held = onnx.TensorProto()
        held.CopyFrom(proto)
        held.name = name
        return helper.make_graph(
            [helper.make_node("Identity", [name], [name + "_out"])],
            name,
            [],
            [helper.make_tensor_value_info(name + "_out", FLOAT, None)],
            [held],
        )

    condition = helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["w"], then_branch=branch("a"), else_branch=branch("b"))
    return model(condition, nodes=[node, helper.make_node("Add", ["x", "w"], ["y"])])


def with_function(proto: onnx.TensorProto) -> onnx.ModelProto:
    """A model-local function whose Constant holds the tensor."""
    result = model(nodes=[helper.make_node("F", ["x"], ["y"], domain="d")])
    del result.graph.initializer[:]
    result.opset_import.add(domain="d", version=1)
    nodes = [constant(proto, "k"), helper.make_node("Add", ["a", "k"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    result.functions.append(helper.make_function("d", "F", ["a"], ["b"], nodes, opsets))
    return result


def with_sparse(proto: onnx.TensorProto) -> onnx.ModelProto:
    result = model()
    indices = helper.make_tensor("i", onnx.TensorProto.INT64, [64], list(range(64)))
    result.graph.sparse_initializer.append(helper.make_sparse_tensor(proto, indices, [100]))
    return result


PLACES: dict[str, Callable[[onnx.TensorProto], onnx.ModelProto]] = {
    "initializer": model,
    "constant": lambda t: model(tensor("u"), nodes=[constant(t), helper.make_node("Add", ["x", "w"], ["y"])]),
    "subgraph": with_subgraph,
    "function": with_function,
    "sparse": with_sparse,
}


def refused(path: Path, kind: type[errors.BnpassError], words: str, *, trust: bool = False) -> None:
    with pytest.raises(kind, match=words) as caught:
        load(path, trust_external_data=trust)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600


# --- files that are no models


def truncated(proto: onnx.ModelProto, keep: float) -> bytes:
    data: bytes = proto.SerializeToString()
    return data[: int(len(data) * keep)]


NOT_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"import torch\nprint('hello')\n" * 20, "not an ONNX model"),
    "json": (b'{"graph": []}', "not an ONNX model"),
    "random": (np.random.default_rng(3).bytes(5000), "not an ONNX model"),
    "zeros": (bytes(4096), "not an ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(200), "not an ONNX model"),
    "pickle": (b"\x80\x04\x95" + b"a" * 100, "not an ONNX model"),
    "endless varint": (b"\xff" * 64, "not an ONNX model"),
    "huge length": (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
    "group": (b"\x0b\x0c", "not an ONNX model"),
    "ort": (b"\x18\x00\x00\x00ORTM" + bytes(64), "before converting it to .ort"),
    "cut in half": (truncated(model(tensor("w", 5000), count=5000), 0.5), "cut off"),
    "cut at the end": (truncated(model(tensor("w", 5000), count=5000), 0.999), "cut off"),
    "cut, small": (truncated(model(), 0.7), "cut off"),
}


@pytest.mark.parametrize("case", NOT_MODELS)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, case: str) -> None:
    content, words = NOT_MODELS[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, errors.ModelError, words)


def test_every_truncation_of_a_model_is_refused_or_loads_less(tmp_path: Path) -> None:
    data = model(tensor("w", 3000), count=3000).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(errors.ModelError):
            load(path)


def test_mutated_models_raise_only_our_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    seeds = [make(tensor("w", 80)).SerializeToString() for name, make in PLACES.items() if name != "sparse"]
    path = tmp_path / "m.onnx"
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    outcomes = {"loaded": 0, "refused": 0}
    for round_ in range(600):
        data = bytearray(seeds[round_ % len(seeds)])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            load(path)
            outcomes["loaded"] += 1
        except errors.BnpassError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_a_file_over_two_gib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    refused(path, errors.ModelError, "2 GiB")


def test_an_ort_suffix_is_enough(tmp_path: Path) -> None:
    refused(write(tmp_path, model(), "m.ort"), errors.ModelError, "before converting it to .ort")


def test_files_that_cannot_be_read_are_file_errors(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", errors.FileAccessError, "no such file")
    refused(tmp_path, errors.FileAccessError, "is a folder")
    os.mkfifo(tmp_path / "fifo.onnx")
    refused(tmp_path / "fifo.onnx", errors.FileAccessError, "not a regular file")
    refused(Path("a\0b.onnx"), errors.FileAccessError, "not the name of a file")
    assert errors.FileAccessError.exit_code == errors.ExitCode.IO


def test_missing_permission_is_a_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, model())

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    refused(path, errors.FileAccessError, "Permission denied")


# --- models that say something impossible


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = model()
    change(proto)
    return proto


def nested(levels: int) -> onnx.ModelProto:
    """If in If, built from the outside: a copy of a deep message is refused by protobuf itself."""
    proto = model()
    graph = proto.graph
    for level in range(levels):
        node = graph.node.add(op_type="If", input=["x"], output=[f"o{level}"])
        held = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = held.g
        graph.name = "inner"
    return proto


def nested_bytes(levels: int) -> bytes:
    """The same as bytes, which protobuf would not write."""

    def field(number: int, content: bytes) -> bytes:
        length, head = len(content), bytearray([number << 3 | 2])
        while length > 0x7F:
            head.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes(head) + bytes([length]) + content

    graph = b""
    for _ in range(levels):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


def cyclic(*calls: tuple[str, str]) -> onnx.ModelProto:
    result = model(nodes=[helper.make_node(calls[0][0], ["x"], ["y"], domain="d")])
    result.opset_import.add(domain="d", version=1)
    for name, callee in calls:
        node = helper.make_node(callee, ["a"], ["b"], domain="d")
        result.functions.append(helper.make_function("d", name, ["a"], ["b"], [node], [helper.make_opsetid("d", 1)]))
    return result


def set_version(proto: onnx.ModelProto, version: int) -> None:
    proto.opset_import[0].version = version


def set_dims(proto: onnx.ModelProto, *dims: int) -> None:
    proto.graph.initializer[0].dims[:] = dims


def set_nodes(proto: onnx.ModelProto, *nodes: tuple[str, str]) -> None:
    del proto.graph.node[:]
    for source, target in nodes:
        proto.graph.node.append(helper.make_node("Relu", [source], [target]))


def attribute(kind: int) -> onnx.ModelProto:
    return edited(lambda m: m.graph.node[0].attribute.add(name="a", type=kind))


def with_type(kind: str) -> onnx.ModelProto:
    proto = model()
    proto.graph.output[0].type.Clear()
    getattr(proto.graph.output[0].type, kind).SetInParent()
    return proto


NEWEST = onnx.defs.onnx_opset_version()
IMPOSSIBLE: dict[str, tuple[onnx.ModelProto, str]] = {
    "no graph": (edited(lambda m: m.ClearField("graph")), "has no graph"),
    "no ir version": (edited(lambda m: m.ClearField("ir_version")), "no ir_version"),
    "newer ir version": (edited(lambda m: setattr(m, "ir_version", onnx.IR_VERSION + 1)), "upgrade"),
    "negative ir version": (edited(lambda m: setattr(m, "ir_version", -1)), "IR version -1"),
    "no opset": (edited(lambda m: m.ClearField("opset_import")), "no opset import"),
    "opset 0": (edited(lambda m: set_version(m, 0)), "not usable"),
    "newer opset": (edited(lambda m: set_version(m, NEWEST + 1)), "upgrade"),
    "two opsets": (edited(lambda m: m.opset_import.add(domain="ai.onnx", version=7)), "not usable"),
    "other opset only": (edited(lambda m: setattr(m.opset_import[0], "domain", "d")), "without an opset"),
    "raw data short": (edited(lambda m: set_dims(m, 65)), "has 256 bytes of data where .* take 260"),
    "raw data long": (edited(lambda m: set_dims(m, 63)), "tensor 'w' has 256 bytes"),
    "overflowing dims": (edited(lambda m: set_dims(m, 2**62, 2**62, 2**62)), "tensor 'w' has 256 bytes"),
    "dims that wrap to the size": (edited(lambda m: set_dims(m, 64, 2**32 + 1)), "cut off"),
    "negative dim": (edited(lambda m: set_dims(m, -64)), "shape"),
    "two negative dims": (edited(lambda m: set_dims(m, -8, -8)), "shape"),
    "rank 5000": (edited(lambda m: set_dims(m, *[2**62] * 5000)), "shape"),
    "no data": (edited(lambda m: m.graph.initializer[0].ClearField("raw_data")), "has 0 values"),
    "unknown type": (edited(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "unknown type"),
    "no type": (edited(lambda m: m.graph.initializer[0].ClearField("data_type")), "cannot be of type"),
    "raw strings": (edited(lambda m: setattr(m.graph.initializer[0], "data_type", 8)), "strings as raw"),
    "segment": (edited(lambda m: m.graph.initializer[0].segment.SetInParent()), "segment"),
    "values in two names": (edited(lambda m: set_nodes(m, ("x", "y"), ("x", "y"))), "defined twice"),
    "output is an input": (edited(lambda m: set_nodes(m, ("x", "x"), ("x", "y"))), "defined twice"),
    "output is a weight": (edited(lambda m: set_nodes(m, ("x", "w"), ("x", "y"))), "defined twice"),
    "two weights": (edited(lambda m: m.graph.initializer.append(tensor("w"))), "defined twice"),
    "two inputs": (edited(lambda m: m.graph.input.append(m.graph.input[0])), "defined twice"),
    "nameless weight": (edited(lambda m: m.graph.initializer.append(tensor(""))), "no name"),
    "undefined input": (edited(lambda m: set_nodes(m, ("nowhere", "y"))), "nothing defines"),
    "not sorted": (edited(lambda m: set_nodes(m, ("b", "y"), ("x", "b"))), "topological"),
    "own output": (edited(lambda m: set_nodes(m, ("y", "y"))), "topological"),
    "undefined output": (edited(lambda m: set_nodes(m, ("x", "z"))), "graph output 'y'"),
    "attribute twice": (
        edited(lambda m: [m.graph.node[0].attribute.add(name="a", type=2, i=i) for i in (1, 2)]),
        "twice",
    ),
    "attribute without type": (attribute(0), "has no type"),
    "sparse attribute": (attribute(11), "sparse"),
    "sparse weight": (with_sparse(tensor("s")), "sparse"),
    "training info": (edited(lambda m: m.training_info.add()), "training_info"),
    "map": (with_type("map_type"), "map type"),
    "sequence without type": (with_type("sequence_type"), "can be represented"),
    "function calls itself": (cyclic(("F", "F")), "in a circle"),
    "functions in a circle": (cyclic(("F", "G"), ("G", "H"), ("H", "F")), "in a circle"),
    "function twice": (cyclic(("F", "K"), ("F", "K")), "same name"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_model_is_refused_from_file(tmp_path: Path, case: str) -> None:
    proto, words = IMPOSSIBLE[case]
    refused(write(tmp_path, proto), errors.ModelError, words)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_model_is_refused_as_message(case: str) -> None:
    proto, words = IMPOSSIBLE[case]
    with pytest.raises(errors.ModelError, match=words):
        load(proto)


def test_more_nodes_than_anybody_waits_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnpass.model_io.structure.MAX_NODES", 2)
    with pytest.raises(errors.ModelError, match="more than 2 nodes; export it in parts"):
        load(nested(5))


def test_deep_nesting_in_memory_is_no_recursion_error() -> None:
    for levels in (31, 400):
        with pytest.raises(errors.ModelError, match="nested"):
            load(nested(levels))
    assert load(nested(25)).graph.name == "g"


@pytest.mark.parametrize("levels", [34, 100, 5000])
def test_deep_nesting_in_a_file_is_no_recursion_error(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(nested_bytes(levels))
    refused(path, errors.ModelError, "not an ONNX model")


def test_fields_that_onnx_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString() + b"\xba\x3e\x03abc")  # field 999
    refused(path, errors.ModelError, "does not know")
    with pytest.raises(errors.ModelError, match="does not know"):
        load(onnx.ModelProto.FromString(path.read_bytes()))


def test_functions_may_call_each_other_in_a_chain() -> None:
    proto = cyclic(("F", "G"), ("G", "H"), ("H", "Custom"))
    assert len(load(proto).functions) == 3


# --- external data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with weights, beside a secret it must not reach."""
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    home = tmp_path / "home"
    home.mkdir()
    (home / "w.bin").write_bytes(np.arange(64, dtype=np.float32).tobytes())
    (home / "sub").mkdir()
    (home / "sub" / "w.bin").write_bytes(np.arange(64, dtype=np.float32).tobytes())
    (home / "final").symlink_to("../secret.bin")
    (home / "inside").symlink_to("w.bin")
    (home / "parent").symlink_to("..", target_is_directory=True)
    (home / "inner").symlink_to("sub", target_is_directory=True)
    (home / "loop").symlink_to("loop")
    (tmp_path / "other.bin").write_bytes(SECRET.tobytes())  # a link count of its own: one reason per case
    (home / "hard").hardlink_to(tmp_path / "other.bin")
    os.mkfifo(home / "fifo")
    return home


UNSAFE_LOCATIONS = {
    "parent": ("../secret.bin", "contains '..'"),
    "parent inside": ("sub/../../secret.bin", "contains '..'"),
    "parent that comes back": ("sub/../w.bin", "contains '..'"),
    "absolute": ("/etc/passwd", "absolute path"),
    "double slash": ("//etc/passwd", "absolute path"),
    "windows drive": ("C:\\secret.bin", "absolute path"),
    "windows parent": ("..\\secret.bin", "contains '..'"),
    "windows share": ("\\\\host\\share\\x", "absolute path"),
    "empty": ("", "not the name of a file"),
    "nul": ("w.bin\0.txt", "not the name of a file"),
    "final symlink": ("final", "symbolic link"),
    "final symlink inside": ("inside", "symbolic link"),
    "parent symlink": ("parent/secret.bin", "leads out of the folder"),
    "hard link": ("hard", "hard link, it has 2 names"),
    "fifo": ("fifo", "not a regular file"),
    "folder": ("sub", "not a regular file"),
    "dot": (".", "not a regular file"),
    "loop": ("loop", "symbolic link"),
    "proc": ("/proc/self/environ", "absolute path"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", UNSAFE_LOCATIONS)
def test_data_outside_the_folder_is_refused_wherever_the_tensor_is(
    folder: Path, case: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, words = UNSAFE_LOCATIONS[case]
    path = write(folder, PLACES[place](external("w", location)))
    monkeypatch.chdir(folder)
    # Each form of the path: onnx_ir checks nothing for a bare file name, nor in functions.
    for form in (path, Path("m.onnx"), Path("./m.onnx")):
        if place == "sparse":  # refused as such, before its data are looked at
            refused(form, errors.ModelError, "sparse")
        else:
            refused(form, errors.UnsafeModelError, f"tensor '[wab]': .*{re.escape(words)}")


RANGES: dict[str, tuple[dict[str, str | int], str]] = {
    "negative offset": ({"offset": -4}, "offset is '-4'"),
    "negative length": ({"length": -1}, "length is '-1'"),
    "float offset": ({"offset": "0.5"}, "whole number"),
    "hex offset": ({"offset": "0x10"}, "whole number"),
    "padded": ({"offset": " 4"}, "whole number"),
    "underscore": ({"offset": "1_0"}, "whole number"),
    "arabic digits": ({"offset": "٤"}, "whole number"),
    "empty": ({"offset": ""}, "whole number"),
    "endless digits": ({"offset": "9" * 5000}, "whole number"),
    "beyond the end": ({"offset": 4}, "bytes 4 to 260 are asked for"),
    "far beyond": ({"offset": 2**63}, "whole number|asked for"),
    "petabyte": ({"length": 10**15}, "take 256 bytes"),
    "too short": ({"length": 252}, "take 256 bytes"),
    "too long": ({"length": 260}, "take 256 bytes"),
    "zero": ({"length": 0}, "take 256 bytes"),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_range_that_lies_is_refused(folder: Path, case: str) -> None:
    entries, words = RANGES[case]
    refused(write(folder, model(external("w", "w.bin", **entries))), errors.UnsafeModelError, words)


def test_a_missing_data_file_is_a_file_error(folder: Path) -> None:
    refused(write(folder, model(external("w", "none.bin"))), errors.FileAccessError, "copy it into")


def test_external_strings_are_refused(folder: Path) -> None:
    proto = external("w")
    proto.data_type = onnx.TensorProto.STRING
    refused(write(folder, model(proto)), errors.ModelError, "STRING")


@pytest.mark.parametrize("location", ["final", "inside", "parent/secret.bin", "hard"])
def test_links_are_accepted_with_trust_and_can_be_read(folder: Path, location: str) -> None:
    path = write(folder, model(external("w", location)))
    refused(path, errors.UnsafeModelError, "trust_external_data")
    value = load(path, trust_external_data=True).graph.initializers["w"].const_value
    assert value is not None
    expected = np.arange(64) if location == "inside" else SECRET
    assert np.array_equal(value.numpy(), expected)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_trust_in_links_is_no_trust_in_paths(folder: Path, location: str) -> None:
    path = write(folder, model(external("w", location)))
    refused(path, errors.UnsafeModelError, "tensor 'w'", trust=True)


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "inner/w.bin"])
@pytest.mark.parametrize("place", [name for name in PLACES if name != "sparse"])
def test_honest_external_data_load_lazily_with_a_base_folder(
    folder: Path, location: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, PLACES[place](external("w", location, offset=0, length=256)))
    monkeypatch.chdir(folder)
    loaded = load("m.onnx")
    monkeypatch.chdir("/")  # a relative base folder would break here
    found = external_tensors(loaded)
    assert found
    for held in found:
        assert Path(held.base_dir) == folder.resolve()
        assert np.array_equal(held.numpy(), np.arange(64))
        assert held.tobytes() == np.arange(64, dtype=np.float32).tobytes()


def external_tensors(loaded: ir.Model) -> list[ir.ExternalTensor]:
    found = []
    for graph in (*loaded.graphs(), *loaded.functions.values()):
        values = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        held = [value.const_value for value in values]
        held += [node.attributes["value"].as_tensor() for node in graph if "value" in node.attributes]
        found += [item for item in held if isinstance(item, ir.ExternalTensor)]
    return found


def test_unknown_keys_are_ignored_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder, model(external("w", __class__="x", checksum="00")))
    with caplog.at_level(logging.WARNING, "bnpass"):
        load(path)
    assert "'__class__'" in caplog.text
    assert "'checksum'" not in caplog.text


def test_a_message_with_external_data_needs_a_base_folder(folder: Path) -> None:
    proto = model(external("w"))
    with pytest.raises(errors.ModelError, match=r"'w'.*base_dir"):
        load(proto)
    value = load(proto, base_dir=folder).graph.initializers["w"].const_value
    assert value is not None
    assert np.array_equal(value.numpy(), np.arange(64))
    with pytest.raises(errors.UnsafeModelError):
        load(model(external("w", "../secret.bin")), base_dir=folder)


def test_an_ir_model_is_checked_and_returned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for place in ("initializer", "function"):
        bad = ir.serde.deserialize_model(PLACES[place](external("w", "../secret.bin")))
        with pytest.raises(errors.UnsafeModelError):
            load(bad)
        good = ir.serde.deserialize_model(PLACES[place](external("w")))
        assert load(good) is good


def test_a_link_to_a_model_finds_data_beside_the_link_or_beside_the_model(folder: Path) -> None:
    write(folder, model(external("w")))
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "m.onnx").symlink_to(folder / "m.onnx")
    value = load(elsewhere / "m.onnx").graph.initializers["w"].const_value
    assert value is not None
    assert np.array_equal(value.numpy(), np.arange(64))


def test_hundreds_of_data_files_do_not_exhaust_descriptors(tmp_path: Path) -> None:
    count = 300
    weights = [external(f"w{i}", f"{i}.bin") for i in range(count)]
    for i in range(count):
        (tmp_path / f"{i}.bin").write_bytes(np.full(64, i, np.float32).tobytes())
    proto = model(*weights, nodes=[helper.make_node("Sum", ["x", *(t.name for t in weights)], ["y"])])
    before = len([*Path("/proc/self/fd").iterdir()])
    loaded = load(write(tmp_path, proto))
    assert len([*Path("/proc/self/fd").iterdir()]) - before < 100
    for i in (0, 150, 299):
        value = loaded.graph.initializers[f"w{i}"].const_value
        assert value is not None
        assert value.numpy()[0] == i


@pytest.mark.parametrize("many", [1, 100])
def test_data_that_change_after_the_check_are_not_read(tmp_path: Path, many: int) -> None:
    weights = [external(f"w{i}", f"{i}.bin") for i in range(many)]
    for i in range(many):
        (tmp_path / f"{i}.bin").write_bytes(bytes(256))
    proto = model(*weights, nodes=[helper.make_node("Sum", ["x", *(t.name for t in weights)], ["y"])])
    loaded = load(write(tmp_path, proto))
    last = tmp_path / f"{many - 1}.bin"
    value = loaded.graph.initializers[f"w{many - 1}"].const_value
    assert value is not None
    if many > 64:  # not kept open: another file has taken the name
        last.unlink()
        last.symlink_to("/etc/passwd")
        with pytest.raises(errors.BnpassError):
            value.numpy()
    else:
        last.write_bytes(bytes(200))
        with pytest.raises(errors.ModelError, match="changed"):
            value.numpy()


AUDIT = """
import os, sys
allowed, secret = os.path.realpath(sys.argv[2]), os.path.realpath(sys.argv[3])
from bnpass import errors
from bnpass.model_io import load
import bnpass.model_io, onnx, onnx_ir, numpy
opened = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, os.PathLike)):
        opened.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(hook)
os.chdir(allowed)
for name in sys.argv[4:]:
    try:
        load(name)
    except errors.ModelError:
        continue
    sys.exit(f"{name} was accepted")
outside = [p for p in opened if not p.startswith(allowed + os.sep) and not p.endswith((".py", ".pyc"))]
assert len(opened) >= len(sys.argv) - 4, opened
sys.exit(f"opened {outside}" if outside else 0)
"""


def test_nothing_outside_the_folder_is_opened(folder: Path, tmp_path: Path) -> None:
    names = []
    for place, make in PLACES.items():
        for number, (location, _) in enumerate(UNSAFE_LOCATIONS.values()):
            names.append(f"{place}{number}.onnx")
            write(folder, make(external("w", location)), names[-1])
    root = Path(__file__).parents[2]
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", AUDIT, "-", str(folder), str(tmp_path / "secret.bin"), *names],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
