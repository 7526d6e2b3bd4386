"""The operators as ONNX schemas: what they compute, which types and attributes they have.

The texts are normative, and docs/operators.md is made of them (``python tools/docs/operators.py --write``). Importing
this module registers nothing: whoever hands a model with these operators to ``onnx.checker`` or
``onnx.shape_inference`` calls ``register`` first.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx
from onnx.defs import OpSchema

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.result_types import RESULT_TYPES

_FLOATS = ("float16", "bfloat16", "float", "double")
_OPTIONAL = OpSchema.FormalParameterOption.Optional

TERMS = """\
#### Terms

**Channels.** X has a rank of at least 1. `axis` is the channel axis, -rank <= axis < rank, and C its length. Axis 0 is
the batch, N its length; where axis 0 is the channel axis, N counts as 1. Any length may be 0.

**Ghost batches.** With `virtual_batch_size` b > 0 the batch is split into G = N/b ghost batches of b samples each:
sample n belongs to ghost batch n mod G. b must divide N, and axis 0 must not be the channel axis; anything else is an
error. With b = 0 the whole batch is the one ghost batch, G = 1. Each ghost batch has statistics of its own. A tensor of
statistics has the shape [G, C] if b > 0, also where G = 1, and [C] if b = 0.

**Replicas.** `group` names the replicas that work together: `""` is this one alone, `"world"` all of them, and other
names are known to the runtime; a name is made of 1 to 64 letters, digits, `_`, `.` and `-`. With a group, sums over the
batch run over the batches of all its replicas, and ghost batches of the same number are pooled. Replicas must agree in
C, G, the type of X and every attribute; they may differ in everything else, and a replica whose batch is empty takes
part like any other. M is the number of elements per channel and ghost batch in such a sum, over the whole group: the
product of all lengths of X but C and G, added up over the replicas; it is 0 if G = 0.

**Order.** Every replica of a group must come to the same collectives in the same order. `collective_id` is the position
of the node in that order; if a node sends more than one message, they all carry its id. `after` is any value that must
exist before the node runs, usually a result of the collective before it; its value is not looked at.

**Slots.** On a node every input and output slot is written, `""` where it is unused, and every attribute is written
too: the defaults of a function are not handed to kernels.

**Numbers.** Statistics, and all arithmetic per channel, are in double. `epsilon` and `momentum` are the numbers that
the float attributes hold. A result of type float16, bfloat16 or float is rounded to that type once. NaN and infinities
in X spread over the statistics of their channel and ghost batch, and no further."""

_FORMULAS = {
    "SyncBatchNormalization": """\
Batch normalization of one channel axis, with the statistics of the batch of one replica or of a group of replicas.

In training mode, with sums over the elements x of a channel and ghost batch:

    mean = Σ x / M        var = Σ (x - mean)² / M

    running_mean = momentum·input_mean + (1 - momentum)·A(mean)
    running_var  = momentum·input_var  + (1 - momentum)·A(var)·M / max(M - running_var_correction, 1)

    count = M

A is the average over the ghost batches. In inference mode mean = input_mean, var = input_var and count = 0; nothing is
exchanged, and the outputs running_mean and running_var must be `""`. In both modes:

    Y = scale·(X - mean) / sqrt(var + epsilon) + B
    saved_mean = mean        saved_inv_std = 1 / sqrt(var + epsilon)

If M = 0 in training mode, there are no statistics to take: everything is as in inference mode, with
running_mean = input_mean and running_var = input_var.""",
    "SyncBatchNormalizationGrad": """\
The gradient of SyncBatchNormalization. With s = saved_inv_std, M = count, and sums over the elements of a channel and
ghost batch, S1 and S2 over the whole group, L1 and L2 over this replica alone:

    S1, L1 = Σ dY        S2, L2 = Σ dY·(X - saved_mean)

    dX = scale·s·(dY - S1/M - (X - saved_mean)·s²·S2/M)

    dscale = Σ s·L2        dB = Σ L1        over the ghost batches

If M = 0 the statistics were constants, as in inference mode: dX = scale·s·dY. dscale and dB are those of this replica;
adding them up over replicas is the business of data-parallel training. Nothing flows into input_mean, input_var and the
running statistics. S1 and S2 are exchanged whatever M is.""",
    "SyncBatchMoments": """\
Mean and population variance of the batch of one replica or of a group of replicas, per channel and ghost batch:

    mean = Σ x / M        var = Σ (x - mean)² / M        count = M

If M = 0 all of them are 0.""",
    "AllReduce": """\
Y is the sum, mean, maximum or minimum of X over the replicas of a group, element by element. X has the same type and
shape on all of them, and so does Y. With group `""` Y = X. The maximum and minimum of a NaN and a number is NaN. The
mean of int64 is not defined. float16 and bfloat16 are summed in float or wider, and rounded once.""",
}

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "SyncBatchNormalization": (
        *("axis", "epsilon", "momentum", "training_mode", "running_var_correction"),
        *("virtual_batch_size", "group", "collective_id"),
    ),
    "SyncBatchNormalizationGrad": ("axis", "virtual_batch_size", "group", "collective_id"),
    "SyncBatchMoments": ("axis", "virtual_batch_size", "group", "collective_id"),
    "AllReduce": ("reduction", "group", "collective_id"),
}
"""The attributes of each operator in the order in which they are written; schemas keep none."""

_ATTRIBUTES: dict[str, tuple[int | float | str, str]] = {
    "axis": (-1, "The channel axis, -rank <= axis < rank."),
    "epsilon": (1e-3, "What is added to the variance."),
    "momentum": (0.99, "The fraction of the running statistics that is kept in a step."),
    "training_mode": (0, "1: take the statistics of the batch. 0: inference mode, take input_mean and input_var."),
    "group": ("", "The replicas that work together; the empty name stands for this replica alone."),
    "running_var_correction": (
        0,
        "0 or 1, for running_var alone: population or sample variance, as NumPy's ddof; but never a division by 0.",
    ),
    "virtual_batch_size": (0, "Samples in a ghost batch; 0: the batch is not split."),
    "reduction": ("sum", '"sum", "mean", "max" or "min".'),
    "collective_id": (0, "Position in the one order of collectives that all replicas of the group follow."),
}
_Slot = tuple[str, str, str]
"""Name, type (a variable or a type), description. A name that ends in ``?`` is optional."""

_AFTER: _Slot = ("after?", "A", "A value that must exist before the node runs.")
_X: _Slot = ("X", "T", "The value, of rank 1 or more.")
_SCALE: _Slot = ("scale", "S", "[C].")
_COUNT = "M, a scalar; 0 where the statistics are constants."

_SLOTS: dict[str, tuple[Sequence[_Slot], Sequence[_Slot]]] = {
    "SyncBatchNormalization": (
        (
            _X,
            _SCALE,
            ("B", "S", "[C]."),
            ("input_mean", "U", "[C]; in inference mode with ghost batches [C] or [G, C]."),
            ("input_var", "U", "Like input_mean."),
            _AFTER,
        ),
        (
            ("Y", "T", "Of the shape of X."),
            ("running_mean?", "U", "[C], of the type of input_mean. Training mode alone."),
            ("running_var?", "U", "[C], of the type of input_var. Training mode alone."),
            ("saved_mean?", "tensor(double)", "[C], with ghost batches [G, C]: the mean that was used."),
            ("saved_inv_std?", "tensor(double)", "Like saved_mean: 1 / sqrt(var + epsilon)."),
            ("count?", "tensor(double)", _COUNT),
        ),
    ),
    "SyncBatchNormalizationGrad": (
        (
            ("dY", "T", "The gradient with respect to Y, of the shape of X."),
            _X,
            _SCALE,
            ("saved_mean", "tensor(double)", "[C], with ghost batches [G, C]."),
            ("saved_inv_std", "tensor(double)", "Like saved_mean."),
            ("count", "tensor(double)", _COUNT),
            _AFTER,
        ),
        (
            ("dX", "T", "Of the shape of X."),
            ("dscale?", "S", "[C]."),
            ("dB?", "S", "[C]."),
        ),
    ),
    "SyncBatchMoments": (
        (_X, _AFTER),
        (
            ("mean", "tensor(double)", "[C], with ghost batches [G, C]."),
            ("var?", "tensor(double)", "Like mean: the population variance."),
            ("count?", "tensor(double)", "M, a scalar."),
        ),
    ),
    "AllReduce": (
        (("X", "T", "Any shape."), _AFTER),
        (("Y", "T", "Of the shape of X."),),
    ),
}


def _tensors(*names: str) -> list[str]:
    return [f"tensor({name})" for name in names]


def _any_tensor() -> list[str]:
    """Return the types of Identity at opset 14, so that the list does not change with the release of onnx."""
    types = onnx.defs.get_schema("Identity", 14).type_constraints[0].allowed_type_strs
    return sorted(name for name in types if name.startswith("tensor("))


def _constraints(op_type: str) -> list[tuple[str, Sequence[str], str]]:
    """Return the type variables that an operator's slots name."""
    data = _tensors(*_FLOATS, *(["int64"] if op_type == "AllReduce" else []))
    every: list[tuple[str, Sequence[str], str]] = [
        ("T", data, "Type of the values."),
        ("S", _tensors("float", "double"), "Type of scale and B; double if T is double."),
        ("U", _tensors("float", "double"), "Type of the running statistics; double if T is double."),
        ("A", _any_tensor(), "Any tensor."),
    ]
    named = {slot[1] for slots in _SLOTS[op_type] for slot in slots}
    return [constraint for constraint in every if constraint[0] in named]


def _formal(slot: _Slot) -> OpSchema.FormalParameter:
    name, type_, description = slot
    if name.endswith("?"):
        return OpSchema.FormalParameter(name[:-1], type_, description, param_option=_OPTIONAL)
    return OpSchema.FormalParameter(name, type_, description)


def _schema(op_type: str) -> OpSchema:
    inputs, outputs = _SLOTS[op_type]
    attributes = [
        OpSchema.Attribute(name, onnx.helper.make_attribute(name, _ATTRIBUTES[name][0]), _ATTRIBUTES[name][1])
        for name in ATTRIBUTES[op_type]
    ]
    schema = OpSchema(
        op_type,
        DOMAIN,
        VERSION,
        f"{_FORMULAS[op_type]}\n\n{TERMS}",
        inputs=[_formal(slot) for slot in inputs],
        outputs=[_formal(slot) for slot in outputs],
        type_constraints=_constraints(op_type),
        attributes=attributes,
    )
    schema.set_type_and_shape_inference_function(RESULT_TYPES[op_type])
    return schema


SCHEMAS: Mapping[str, OpSchema] = MappingProxyType({op_type: _schema(op_type) for op_type in _SLOTS})
"""The schema of each operator, by op type."""


def register() -> None:
    """Make the operators known to onnx in this process; calls after the first one do nothing.

    From then on ``onnx.checker`` and ``onnx.shape_inference`` judge their nodes, attributes, types and shapes.
    """
    for op_type, schema in SCHEMAS.items():
        if not onnx.defs.has(op_type, VERSION, DOMAIN):
            onnx.defs.register_schema(schema)
