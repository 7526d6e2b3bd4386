"""What onnx knows of the operators once they are registered: types, shapes, and what it refuses."""

import subprocess
import sys

import onnx
import pytest
from onnx.shape_inference import InferenceError

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS, TERMS, register
from tools.docs import operators as page

NORM = "X, scale, B, input_mean, input_var, "
GRAD = "dY, X, scale, saved_mean, saved_inv_std, count, "
X4 = "float[N, 3, H, 5] X"
VECTORS = "float[3] scale, float[3] B, float[3] input_mean, float[3] input_var"
SAVED = "double[3] saved_mean, double[3] saved_inv_std, double count"


def inferred(inputs: str, call: str, outputs: str, *, functions: str = "", results: str = "") -> dict[str, str]:
    """Return what strict inference says of the outputs of one node, as ``type[dims]``."""
    register()
    names = [name.strip() for name in (results or outputs).split(",")]
    text = f'<ir_version: 8, opset_import: ["": 18, "{DOMAIN}": 1, "own": 1]> g ({inputs}) => (float y) {{'
    text += f"{outputs} = {call}\n y = Constant <value_float = 1.0> () }} {functions}"
    model = onnx.parser.parse_model(text)
    done = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return {info.name: _written(info.type.tensor_type) for info in done.graph.value_info if info.name in names}


def _written(tensor: onnx.TypeProto.Tensor) -> str:
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{name}?"
    dims = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return f"{name}[{','.join('?' if dim.startswith('unk__') else dim for dim in dims)}]"


def node(op_type: str, operands: str, **attributes: int | str | float) -> str:
    written = ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in attributes.items())
    return f"{DOMAIN}.{op_type} <{written}> ({operands})" if written else f"{DOMAIN}.{op_type} ({operands})"


def norm(inputs: str = f"{X4}, {VECTORS}", outputs: str | None = None, **attributes: int | str) -> dict[str, str]:
    attributes = {"axis": 1, **attributes}
    running = "running_mean, running_var" if attributes.get("training_mode", 0) else ","
    outputs = outputs or f"Y, {running}, saved_mean, saved_inv_std, count"
    return inferred(inputs, node("SyncBatchNormalization", NORM, **attributes), outputs)


def grad(
    inputs: str = f"float[N, 3, H, 5] dY, {X4}, float[3] scale, {SAVED}", **attributes: int | str
) -> dict[str, str]:
    return inferred(inputs, node("SyncBatchNormalizationGrad", GRAD, **{"axis": 1, **attributes}), "dX, dscale, dB")


def moments(inputs: str = X4, **attributes: int | str) -> dict[str, str]:
    return inferred(inputs, node("SyncBatchMoments", "X, ", **{"axis": 1, **attributes}), "mean, var, count")


def all_reduce(inputs: str = "float[2, N] X", **attributes: int | str) -> dict[str, str]:
    return inferred(inputs, node("AllReduce", "X, ", **attributes), "Y")


def test_training_mode_returns_statistics_of_the_batch() -> None:
    assert norm(training_mode=1, group="world") == {
        "Y": "float[N,3,H,5]",
        "running_mean": "float[3]",
        "running_var": "float[3]",
        "saved_mean": "double[3]",
        "saved_inv_std": "double[3]",
        "count": "double[]",
    }


def test_inference_mode_has_no_running_statistics() -> None:
    assert norm() == {
        "Y": "float[N,3,H,5]",
        "saved_mean": "double[3]",
        "saved_inv_std": "double[3]",
        "count": "double[]",
    }


def test_types_of_values_parameters_and_statistics_are_independent() -> None:
    vectors = "double[3] scale, double[3] B, float[3] input_mean, float[3] input_var"
    found = norm(f"bfloat16[4, 3] X, {vectors}", training_mode=1)
    assert (found["Y"], found["running_mean"], found["saved_mean"]) == ("bfloat16[4,3]", "float[3]", "double[3]")


@pytest.mark.parametrize(("batch", "ghosts"), [("6", "3"), ("N", "?"), ("0", "0"), ("2", "1")])
def test_ghost_batches_have_statistics_of_their_own(batch: str, ghosts: str) -> None:
    x = f"float[{batch}, 3] X"
    assert norm(f"{x}, {VECTORS}", virtual_batch_size=2)["saved_mean"] == f"double[{ghosts},3]"
    assert moments(x, virtual_batch_size=2)["var"] == f"double[{ghosts},3]"


def test_inference_mode_takes_statistics_per_ghost_batch() -> None:
    statistics = "double[3, 3] input_mean, double[3] input_var"
    found = norm(f"float[6, 3] X, float[3] scale, float[3] B, {statistics}", virtual_batch_size=2)
    assert found["saved_mean"] == "double[3,3]"


def test_the_gradient_is_as_its_operands() -> None:
    assert grad() == {"dX": "float[N,3,H,5]", "dscale": "float[3]", "dB": "float[3]"}


def test_moments() -> None:
    assert moments() == {"mean": "double[3]", "var": "double[3]", "count": "double[]"}
    assert moments("float[7] X", axis=-1) == {"mean": "double[7]", "var": "double[7]", "count": "double[]"}


@pytest.mark.parametrize("type_", ["float16", "bfloat16", "float", "double", "int64"])
def test_all_reduce_changes_nothing_of_type_and_shape(type_: str) -> None:
    assert all_reduce(f"{type_}[2, N] X", group="a.b-c_1") == {"Y": f"{type_}[2,N]"}


def test_what_is_not_known_is_not_judged() -> None:
    vectors = "float[K] scale, float[L] B, float[3] input_mean, float[M] input_var"
    assert norm(f"float[N, C, H] X, {vectors}")["saved_mean"] == "double[C]"


def test_a_rank_that_is_not_known_is_not_judged() -> None:
    call = f"{DOMAIN}.SyncBatchMoments <axis = 9, virtual_batch_size = 2> (X, )"
    found = inferred("float[N] raw, int64[K] dims", f"Reshape (raw, dims) m, v, c = {call}", "X", results="X, m, c")
    assert found == {"X": "float?", "m": "double[?,?]", "c": "double[]"}


def test_an_attribute_by_reference_is_not_judged() -> None:
    function = f"""
        <domain: "own", opset_import: ["": 18, "{DOMAIN}": 1]>
        F <a: int = 7, g: string = "no name!"> (X) => (m) {{
            m, v, c = {DOMAIN}.SyncBatchMoments <axis: int = @a, group: string = @g> (X, )
        }}"""
    assert inferred("float[2, 3] X", 'own.F <a = 1, g = "world"> (X)', "m", functions=function) == {"m": "double[3]"}


REFUSED = {
    "axis is 4, but X has rank 4": lambda: norm(axis=4),
    "axis is -5, but X has rank 4": lambda: moments(axis=-5),
    "virtual_batch_size is -1, less than 0": lambda: moments(virtual_batch_size=-1),
    "virtual_batch_size 4 does not divide the batch 6": lambda: moments("float[6, 3] X", virtual_batch_size=4),
    "virtual_batch_size needs a batch axis": lambda: moments("float[6, 3] X", axis=0, virtual_batch_size=2),
    "virtual_batch_size needs a batch axis, but axis 0 holds": lambda: grad(axis=-4, virtual_batch_size=1),
    "group 'no name' is not made of": lambda: norm(group="no name"),
    "group 'a/b' is not made of": lambda: grad(group="a/b"),
    "group 'a:b' is not made of": lambda: all_reduce(group="a:b"),
    "is not made of 1 to 64 letters": lambda: moments(group="a" * 65),
    "training_mode is 2, not 0 or 1": lambda: norm(training_mode=2),
    "running_var_correction is 2, not 0 or 1": lambda: norm(running_var_correction=2),
    "running_mean and running_var are outputs of training mode alone": lambda: norm(outputs="Y, rm, , m, s, c"),
    "outputs of training mode alone": lambda: norm(outputs="Y, , rv, m, s, c"),
    "scale has shape [2], not [3]": lambda: norm(f"{X4}, {VECTORS}".replace("float[3] scale", "float[2] scale")),
    "B has shape [3, 1], not [3]": lambda: norm(f"{X4}, {VECTORS}".replace("float[3] B", "float[3, 1] B")),
    "input_var has shape [4], not [3]": lambda: norm(
        f"{X4}, {VECTORS}".replace("float[3] input_var", "float[4] input_var")
    ),
    "input_mean has shape [3, 3], not [3]": lambda: norm(
        f"float[6, 3] X, {VECTORS}".replace("float[3] input_mean", "float[3, 3] input_mean"),
        virtual_batch_size=2,
        training_mode=1,
    ),
    "input_mean has shape [2, 3], not [3] or [3, 3]": lambda: norm(
        f"float[6, 3] X, {VECTORS}".replace("float[3] input_mean", "float[2, 3] input_mean"), virtual_batch_size=2
    ),
    "scale must be double, as X is": lambda: norm(f"double[2, 3] X, {VECTORS}"),
    "input_mean must be double, as X is": lambda: norm(
        f"double[2, 3] X, double[3] scale, double[3] B, {VECTORS.split(', ', 2)[2]}"
    ),
    "dY has shape [3, 2], not [2, 3]": lambda: grad(f"float[3, 2] dY, float[2, 3] X, float[3] scale, {SAVED}"),
    "saved_mean has shape [3], not [?, 3]": lambda: grad(virtual_batch_size=2),
    "count has shape [1], not []": lambda: grad(
        f"float[N, 3, H, 5] dY, {X4}, float[3] scale, {SAVED}".replace("double count", "double[1] count")
    ),
    "reduction is 'prod', not one of sum, mean, max, min": lambda: all_reduce(reduction="prod"),
    "the mean of int64 is not defined": lambda: all_reduce("int64[2] X", reduction="mean"),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_node_that_makes_no_sense_is_refused(sentence: str) -> None:
    with pytest.raises(InferenceError) as raised:
        REFUSED[sentence]()
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("inputs", "call"),
    [
        ("int32[2, 3] X", node("SyncBatchMoments", "X, ")),
        ("int32[2, 3] X", node("AllReduce", "X, ")),
        (
            f"{X4}, {VECTORS}".replace("float[3] scale", "float16[3] scale"),
            node("SyncBatchNormalization", NORM, axis=1),
        ),
        (f"{X4}, {VECTORS}".replace("float[3] scale", "double[3] scale"), node("SyncBatchNormalization", NORM, axis=1)),
    ],
)
def test_types_that_no_operator_takes_are_refused(inputs: str, call: str) -> None:
    with pytest.raises(InferenceError, match="type"):
        inferred(inputs, call, "Y")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (node("AllReduce", "X, ", reduce="sum"), "Unrecognized attribute"),
        (node("AllReduce", "X, ", group=1), "Mismatched attribute type"),
        (node("SyncBatchMoments", "X, , X"), "has input size 3"),
        (node("SyncBatchNormalization", "X"), "has input size 1"),
    ],
)
def test_the_checker_knows_slots_and_attributes(call: str, sentence: str) -> None:
    register()
    text = (
        f'<ir_version: 8, opset_import: ["": 18, "{DOMAIN}": 1]> g (float[2, 3] X) => (float[2, 3] y) {{ y = {call} }}'
    )
    with pytest.raises(onnx.checker.ValidationError, match=sentence):
        onnx.checker.check_model(onnx.parser.parse_model(text))


def test_registering_twice_is_registering_once() -> None:
    register()
    register()
    for op_type, schema in SCHEMAS.items():
        found = onnx.defs.get_schema(op_type, VERSION, DOMAIN)
        assert (found.name, found.doc) == (op_type, schema.doc)
        assert found.has_type_and_shape_inference_function


def test_nothing_is_registered_by_an_import_and_nothing_is_left_behind() -> None:
    """The inference functions are Python: onnx holds them until the process ends."""
    code = f"""
import onnx, bnpass, bnpass.ops, bnpass.ops.bodies, bnpass.ops.schemas as schemas
assert not any(s.domain == "{DOMAIN}" for s in onnx.defs.get_all_schemas())
schemas.register()
assert sum(s.domain == "{DOMAIN}" for s in onnx.defs.get_all_schemas()) == 4
head = '<ir_version: 8, opset_import: ["": 18, "{DOMAIN}": 1]> g (float[2] X) => (float[N] y)'
text = head + ' {{ y = {DOMAIN}.AllReduce (X) }}'
onnx.checker.check_model(onnx.parser.parse_model(text), full_check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("op_type", SCHEMAS)
def test_everything_is_described(op_type: str) -> None:
    schema = SCHEMAS[op_type]
    assert set(ATTRIBUTES[op_type]) == set(schema.attributes)
    described = [*schema.inputs, *schema.outputs, *schema.attributes.values(), *schema.type_constraints]
    assert all(part.description for part in described)
    assert schema.doc.endswith(TERMS)
    assert all(not attribute.required for attribute in schema.attributes.values())


def test_the_page_of_the_operators_is_up_to_date() -> None:
    """If not: python tools/docs/operators.py --write."""
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
