"""Loading and saving: nothing is lost, invented or held in memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from bnpass import errors
from bnpass.model_io import Policy, load, save, to_proto, to_type_of
from bnpass.model_io.tensors import ContainedTensor, InlineTensor
from bnpass.model_io.wire import MINIMUM, MalformedError, Tokens, expand, skim

ROOT = Path(__file__).parents[2]
FLOAT = onnx.TensorProto.FLOAT


def filled(name: str, shape: tuple[int, ...], kind: int = FLOAT, seed: int = 0) -> onnx.TensorProto:
    """A tensor of random bytes."""
    bits = ir.DataType(kind).bitwidth
    count = (int(np.prod(shape)) * bits + 7) // 8
    data = np.random.default_rng(seed).bytes(count)
    return onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=data)


def info(name: str, shape: tuple[int | str | None, ...] | None = (50, 50)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def rich() -> onnx.ModelProto:
    """A bit of everything that a model can hold and onnx_ir can keep."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["branch_out"])],
        "branch",
        [],
        [info("branch_out")],
        [filled("inner", (50, 50), seed=1)],
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "other", [], [info("o")])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=filled("", (50, 50), seed=2)),
        helper.make_node("F", ["x"], ["f"], domain="d", alpha=2.0),
        helper.make_node("If", ["c"], ["i"], name="named", doc_string="why", then_branch=branch, else_branch=other),
        helper.make_node("Sum", ["x", "w", "k", "f", "i"], ["s"]),
        helper.make_node("Dropout", ["s", "", ""], ["y", ""]),
    ]
    nodes[3].metadata_props.add(key="layer", value="conv1")
    weights = [
        filled("w", (50, 50), seed=3),
        helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True]),
        filled("unused", (3000,), onnx.TensorProto.BFLOAT16, seed=4),
        helper.make_tensor("typed", FLOAT, [3], [1.0, 2.0, 3.0]),
        onnx.TensorProto(name="words", data_type=onnx.TensorProto.STRING, dims=[2], string_data=[b"a", b"bc"]),
        filled("four", (9001,), onnx.TensorProto.INT4, seed=5),
        onnx.TensorProto(name="nothing", data_type=FLOAT, dims=[0, 5]),
    ]
    weights[0].doc_string = "weights"
    weights[0].metadata_props.add(key="origin", value="layer1")
    weights[3].metadata_props.add(key="origin", value="layer2")
    graph = helper.make_graph(nodes, "g", [info("x", ("N", None))], [info("y")], weights, doc_string="graph doc")
    graph.metadata_props.add(key="g", value="1")
    graph.value_info.append(info("s"))
    annotation = graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="typed")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 3)]
    function = helper.make_function(
        "d",
        "F",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["kk"], value=filled("", (50, 50), seed=6)),
            helper.make_node("Add", ["a", "kk"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
        ["alpha"],
    )
    result = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function])
    result.producer_name, result.producer_version, result.model_version = "me", "1.2", 7
    result.domain, result.doc_string = "example.org", "model doc"
    result.metadata_props.add(key="license", value="none")
    return result


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def normal(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same without what may differ: onnx_ir writes the types of weights too, and no empty names."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graphs = [result.graph]
    nodes = [*result.functions[0].node] if result.functions else []
    while graphs:
        graph = graphs.pop()
        weights = {tensor.name for tensor in graph.initializer}
        kept = sorted((i for i in graph.value_info if i.name not in weights), key=lambda i: i.name)
        del graph.value_info[:]
        graph.value_info.extend(kept)
        nodes += graph.node
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for node in nodes:
        while node.output and not node.output[-1]:
            node.output.pop()
        for attribute in node.attribute:
            if attribute.HasField("t") and not attribute.t.name:
                attribute.t.ClearField("name")
    return result


@pytest.mark.parametrize("source", ["path", "message"])
def test_everything_in_a_model_survives(tmp_path: Path, source: str) -> None:
    proto = rich()
    model = load(write(tmp_path / "m.onnx", proto) if source == "path" else proto)
    saved = onnx.load(save(model, tmp_path / "n.onnx").model)
    assert normal(saved) == normal(proto)
    onnx.checker.check_model(saved)


def test_a_second_round_changes_no_byte(tmp_path: Path) -> None:
    first = save(load(rich()), tmp_path / "a.onnx").model.read_bytes()
    for _ in range(2):
        assert save(load(tmp_path / "a.onnx"), tmp_path / "a.onnx", force=True).model.read_bytes() == first
    folder = tmp_path / "external"
    folder.mkdir()
    done = save(load(tmp_path / "a.onnx"), folder / "a.onnx", external_data="always")
    contents = [path.read_bytes() for path in (done.model, *done.data)]
    assert save(load(done.model), folder / "a.onnx", force=True) == done
    assert [path.read_bytes() for path in (done.model, *done.data)] == contents
    back = save(load(done.model), tmp_path / "b.onnx", external_data="never")
    assert normal(onnx.load(back.model)) == normal(onnx.load(tmp_path / "a.onnx"))


def test_external_data_and_inline_data_hold_the_same_model(tmp_path: Path) -> None:
    proto = rich()
    done = save(load(proto), tmp_path / "m.onnx", external_data="always", threshold=0)
    for tensor in proto.graph.initializer:  # plain bytes in a data file cannot stay a list of numbers
        if tensor.name == "typed":
            tensor.raw_data = np.asarray(tensor.float_data, np.float32).tobytes()
            tensor.ClearField("float_data")
        if tensor.name == "c":
            tensor.raw_data = bytes(tensor.int32_data)
            tensor.ClearField("int32_data")
    assert normal(to_proto(load(done.model))) == normal(proto)


def test_the_bytes_are_those_that_protobuf_writes(tmp_path: Path) -> None:
    data = save(load(write(tmp_path / "m.onnx", rich())), tmp_path / "n.onnx").model.read_bytes()
    assert onnx.ModelProto.FromString(data).SerializeToString(deterministic=True) == data


def test_unnamed_nodes_stay_unnamed_and_new_ones_get_names(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", rich()))
    model.graph.append(ir.node("Relu", [model.graph.inputs[0]]))
    saved = onnx.load(save(model, tmp_path / "n.onnx").model)
    assert [node.name for node in saved.graph.node][:5] == ["", "", "named", "", ""]
    assert saved.graph.node[5].name
    assert {node.name for node in saved.functions[0].node} == {""}


def test_ir_version_3_keeps_its_initializers_among_the_inputs(tmp_path: Path) -> None:
    weight = filled("w", (50, 50))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [info("x"), info("w")], [info("y")], [weight]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)
    policies: tuple[Policy, ...] = ("never", "always")
    for policy in policies:
        done = save(load(write(tmp_path / "m.onnx", proto)), tmp_path / f"{policy}.onnx", external_data=policy)
        saved = onnx.load(done.model)
        assert saved.ir_version == 3
        assert [i.name for i in saved.graph.input] == ["x", "w"]
        assert [t.name for t in saved.graph.initializer] == ["w"]
        assert ir.load(done.model).graph.initializers["w"].const_value is not None


KINDS = [kind for kind in ir.DataType if kind.name not in {"UNDEFINED", "STRING"}]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("policy", ["never", "always"])
def test_every_type_is_read_as_onnx_ir_reads_it(tmp_path: Path, kind: ir.DataType, policy: Policy) -> None:
    weight = filled("w", (172, 125), kind.value)
    if kind == ir.DataType.BOOL:
        weight.raw_data = bytes(byte & 1 for byte in weight.raw_data)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x")], [info("y")], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    done = save(load(write(tmp_path / "m.onnx", proto)), tmp_path / "n.onnx", external_data=policy)
    held = load(done.model).graph.initializers["w"].const_value
    assert isinstance(held, InlineTensor if policy == "never" else ContainedTensor)
    expected = ir.serde.TensorProtoTensor(weight)
    assert held.tobytes() == expected.tobytes()
    assert held.nbytes == expected.nbytes
    ours, theirs = held.numpy(), expected.numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()
    assert np.asarray(held).tobytes() == theirs.tobytes()


def test_large_inline_tensors_stay_in_the_file_wherever_they_are(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", rich()))
    constant = model.graph[0].attributes["value"].as_tensor()
    inner = model.graph[2].attributes["then_branch"].as_graph().initializers["inner"].const_value
    in_function = model.functions["d", "F", ""][0].attributes["value"].as_tensor()
    weight = model.graph.initializers["w"].const_value
    for held, seed in ((constant, 2), (inner, 1), (in_function, 6), (weight, 3)):
        assert isinstance(held, InlineTensor)
        assert held.tobytes() == filled("", (50, 50), seed=seed).raw_data
    assert weight is not None
    assert weight.doc_string == "weights"
    assert dict(weight.metadata_props) == {"origin": "layer1"}


def test_onnx_ir_can_save_what_we_load(tmp_path: Path) -> None:
    proto = rich()
    ir.save(load(write(tmp_path / "m.onnx", proto)), tmp_path / "theirs.onnx")
    assert {t.name for t in onnx.load(tmp_path / "theirs.onnx").graph.initializer} == {
        t.name for t in proto.graph.initializer
    }


# --- the border


def test_what_comes_in_goes_out(tmp_path: Path) -> None:
    proto = rich()
    path = write(tmp_path / "m.onnx", proto)
    back = to_type_of(proto, load(proto))
    assert isinstance(back, onnx.ModelProto)
    assert normal(back) == normal(proto)
    given = ir.load(path)
    assert to_type_of(given, load(given)) is given
    assert isinstance(to_type_of(path, load(path)), ir.Model)
    assert normal(to_proto(load(path))) == normal(proto)


def test_the_callers_message_is_not_changed(tmp_path: Path) -> None:
    proto = rich()
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    for name in ("w", "typed"):
        model.graph.initializers[name].name = f"renamed_{name}"
    save(model, tmp_path / "m.onnx")
    renamed = {tensor.name for tensor in to_proto(model).graph.initializer}
    assert {"renamed_w", "renamed_typed"} <= renamed
    assert proto.SerializeToString(deterministic=True) == before


def test_the_callers_model_keeps_its_tensors(tmp_path: Path) -> None:
    model = load(rich())
    tensors = [value.const_value for value in model.graph.initializers.values()]
    attribute = model.graph[0].attributes["value"].as_tensor()
    policies: tuple[Policy, ...] = ("never", "always")
    for policy in policies:
        save(model, tmp_path / f"{policy}.onnx", external_data=policy)
        assert all(v.const_value is t for v, t in zip(model.graph.initializers.values(), tensors, strict=True))
        assert model.graph[0].attributes["value"].as_tensor() is attribute


def huge(tmp_path: Path, gib: float, pieces: int = 8) -> Path:
    """A model with external data that takes no space on the disk."""
    size = int(gib * 2**30) // pieces // 4096 * 4096
    weights = []
    for index in range(pieces):
        tensor = onnx.TensorProto(name=f"w{index}", data_type=FLOAT, dims=[size // 4])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(pieces * size)
    node = helper.make_node("Sum", ["x", *(t.name for t in weights)], ["y"])
    graph = helper.make_graph([node], "g", [info("x", None)], [info("y", None)], weights)
    return write(
        tmp_path / "m.onnx",
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
    )


def test_more_than_protobuf_holds_is_refused_by_its_computed_size(tmp_path: Path) -> None:
    model = load(huge(tmp_path, 2.01))
    with pytest.raises(errors.SaveError, match="2 GiB"):
        save(model, tmp_path / "n.onnx", external_data="never")
    with pytest.raises(errors.SaveError, match="2 GiB"):
        to_proto(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


MEASURED = """
import sys
import numpy as np, onnx_ir as ir
from bnpass.model_io import load, save
model = load(sys.argv[1])
def high_water():  # not ru_maxrss, which a child takes over from its parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
base = high_water()
value = next(iter(model.graph.initializers.values()))
size = value.const_value.shape[0]
value.const_value = ir.LazyTensor(
    lambda: ir.tensor(np.ones(1000, np.float32)), ir.DataType.FLOAT, ir.Shape([1000]), name=value.name
)
done = save(model, sys.argv[2])
print(base, high_water(), done.bytes)
"""


def measured(source: Path, target: Path) -> tuple[int, int, int]:
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", MEASURED, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    base, peak, size = (int(word) for word in done.stdout.split())
    return base, peak, size


def test_a_gibibyte_of_external_data_is_copied_in_little_memory(tmp_path: Path) -> None:
    base, peak, size = measured(huge(tmp_path, 1.0), tmp_path / "n.onnx")
    for path in tmp_path.iterdir():
        path.unlink()
    assert size > 0.87 * 2**30
    assert peak < 300
    assert peak - base < 40


def test_a_large_inline_model_is_copied_in_little_memory(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x"], ["y"])],
        "g",
        [info("x")],
        [info("y")],
        [filled(f"w{i}", (4 << 20,), seed=i) for i in range(8)],
    )
    write(source, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    base, peak, size = measured(source, tmp_path / "n.onnx")
    for path in tmp_path.iterdir():
        path.unlink()
    assert size > 7 * 16 << 20
    assert peak < 300
    assert peak - base < 40


# --- the wire


def test_expand_is_the_inverse_of_skim() -> None:
    data = rich().SerializeToString()
    tokens = Tokens()
    skeleton, spans = skim(lambda count, offset: data[offset : offset + count], len(data), tokens)
    assert len(spans) == 6
    assert len(skeleton) < len(data) - 6 * (MINIMUM - 100)
    parts, total = expand(skeleton, [span.length for span in spans], tokens)
    pieces = [
        part if isinstance(part, bytes) else data[spans[part].offset : spans[part].offset + spans[part].length]
        for part in parts
    ]
    assert b"".join(pieces) == data
    assert total == len(data)


@pytest.mark.parametrize("length", [MINIMUM - 1, MINIMUM, MINIMUM + 1, 16383, 16384, 2**21 - 1, 2**21])
def test_lengths_at_every_edge_of_the_encoding_survive(tmp_path: Path, length: int) -> None:
    weight = filled("w", (length,), onnx.TensorProto.UINT8)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x")], [info("y")], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load(write(tmp_path / "m.onnx", proto))
    held = model.graph.initializers["w"].const_value
    assert isinstance(held, InlineTensor) == (length >= MINIMUM)
    assert onnx.load(save(model, tmp_path / "n.onnx").model).graph.initializer[0] == weight


def test_a_repeated_field_means_its_last_value(tmp_path: Path) -> None:
    """Protobuf merges messages that are written in two parts; so must a reader of its own."""
    first, last = filled("w", (2000,), seed=1), filled("w", (2000,), seed=2)
    proto = onnx.ModelProto.FromString(rich().SerializeToString())
    part = onnx.ModelProto()
    part.graph.initializer.add().CopyFrom(filled("late", (2000,), seed=3))
    twice = onnx.TensorProto(name="twice", data_type=FLOAT, dims=[2000], raw_data=first.raw_data)
    encoded = twice.SerializeToString() + onnx.TensorProto(raw_data=last.raw_data).SerializeToString()
    head = onnx.GraphProto()
    head.initializer.add().ParseFromString(encoded)
    whole = proto.SerializeToString() + part.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    held = load(path).graph.initializers["late"].const_value
    assert held is not None
    assert held.tobytes() == filled("", (2000,), seed=3).raw_data
    field = encoded
    size = len(field)
    varint = bytearray()
    while size > 0x7F:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    inner = b"\x2a" + bytes(varint) + bytes([size]) + field
    size = len(inner)
    varint = bytearray()
    while size > 0x7F:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    path.write_bytes(proto.SerializeToString() + b"\x3a" + bytes(varint) + bytes([size]) + inner)
    held = load(path).graph.initializers["twice"].const_value
    assert held is not None
    assert held.tobytes() == last.raw_data


def test_tokens_cannot_be_forged() -> None:
    ours, theirs = Tokens(), Tokens()
    assert ours.index(theirs.make(0)) is None
    assert ours.index(ours.make(7)) == 7
    assert ours.index(ours.make(7) + b"x") is None


@pytest.mark.parametrize("data", [b"\x3a\x05abc", b"\x08", b"\xff" * 20, b"\x00\x01", b"\x0f", b"\x09abc"])
def test_what_is_no_message_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        skim(lambda count, offset: data[offset : offset + count], len(data), Tokens())
