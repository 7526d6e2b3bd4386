"""Models of one site, how they are run, and what they should give: the float64 reference."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bnpass.expansion.expander import Expansion, expand
from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.sites import is_site
from bnpass.semantics import reference
from bnpass.semantics.resolved import Resolved

Array = NDArray[Any]
Arrays = dict[str, Array]

F16, BF16, F32, F64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.float64)
NEWEST = onnx.defs.onnx_opset_version()
NEWEST_IN_ORT = 26
LOCAL, WORLD = ExpandOptions(), ExpandOptions(group="world")


def model_of(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, Array],
    outputs: Mapping[str, tuple[Any, int]],
    *,
    opset: int = 17,
    constants: Mapping[str, Array] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    ir_version: int | None = None,
) -> ir.Model:
    """Return a model; inputs have the types of ``feeds``, and their shapes unless ``shapes`` says otherwise.

    Of the outputs the types and ranks are given.
    """
    version = ir_version or (3 if opset < 9 else 8)
    declared = {name: (shapes or {}).get(name, array.shape) for name, array in feeds.items()}
    inputs = [info(name, array.dtype, declared[name]) for name, array in feeds.items()]
    initializers = [ir.to_proto(ir.Tensor(a, name=name)) for name, a in (constants or {}).items()]
    if version < 4:
        inputs += [info(name, array.dtype, array.shape) for name, array in (constants or {}).items()]
    graph = onnx.helper.make_graph(
        list(nodes), "g", inputs, [info(n, dtype, [None] * rank) for n, (dtype, rank) in outputs.items()], initializers
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("bnpass", 1)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=version))


def info(name: str, dtype: Any, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    """Declare a value."""
    return onnx.helper.make_tensor_value_info(name, ir.DataType.from_numpy(np.dtype(dtype)), shape)


def expanded(model: ir.Model, options: ExpandOptions = LOCAL) -> tuple[ir.Model, Expansion]:
    """Expand a copy, check that it is valid, and return it."""
    copy = model.clone()
    done = expand(copy, options)
    proto = ir.to_proto(copy)
    onnx.checker.check_model(proto, full_check=True)
    opset = copy.opset_imports[""]
    assert options.as_functions or not any(is_site(n, opset) for n in ir.traversal.RecursiveGraphIterator(copy.graph))
    return copy, done


def run_ort(model: ir.Model, feeds: Mapping[str, Array], *, optimized: bool = True) -> Arrays:
    """Run a model in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in proto.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_reference(model: ir.Model, feeds: Mapping[str, Array]) -> Arrays:
    """Run a model in ONNX's own evaluator, as one replica."""
    return run_replicas(model, [feeds])[0]


def run_everywhere(model: ir.Model, feeds: Mapping[str, Array]) -> list[Arrays]:
    """Run a model in ONNX Runtime, as far as it knows the opset, with and without optimizations, and in ONNX's own."""
    if model.opset_imports[""] > NEWEST_IN_ORT:
        return [run_reference(model, feeds)]
    return [run_ort(model, feeds), run_ort(model, feeds, optimized=False), run_reference(model, feeds)]


class _World:
    """Replicas in threads: an all-reduce waits until all have come, and adds up in the order of their ranks."""

    def __init__(self, size: int) -> None:
        self._barrier, self._parts = threading.Barrier(size, timeout=20), [np.zeros(0)] * size
        self.messages: list[list[tuple[int, str, tuple[int, ...]]]] = [[] for _ in range(size)]

    def total(self, rank: int, part: Array, number: int, group: str) -> Array:
        self.messages[rank].append((number, group, part.shape))
        self._parts[rank] = part
        self._barrier.wait()
        parts = list(self._parts)
        self._barrier.wait()
        if len({(p.shape, p.dtype) for p in parts}) > 1:
            raise ValueError("replicas send messages of different lengths or types")
        return np.asarray(sum(parts[1:], start=parts[0]))


_HERE = threading.local()


class AllReduce(OpRun):
    """The sum over the replicas of this test."""

    op_domain = "bnpass"

    def _run(self, X: Array, after: Any = None, **attributes: Any) -> tuple[Array]:
        del after
        group = attributes["group"]
        return (_HERE.world.total(_HERE.rank, X, attributes["collective_id"], group) if group else X,)


def run_replicas(model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> list[Arrays]:
    """Run one model in as many replicas as there are feeds, in ONNX's evaluator; all share every group."""
    proto = ir.to_proto(model)
    kept = [f for f in proto.functions if f.domain != "bnpass"]
    del proto.functions[:]
    proto.functions.extend(kept)
    names = [value.name for value in proto.graph.output]
    world, results = _World(len(feeds)), [Arrays() for _ in feeds]
    errors: list[BaseException] = []

    def replica(rank: int) -> None:
        _HERE.world, _HERE.rank = world, rank
        try:
            with np.errstate(all="ignore"):  # NaN and infinities are compared, not warned of
                found = ReferenceEvaluator(proto, new_ops=[AllReduce]).run(None, dict(feeds[rank]))
            results[rank] = dict(zip(names, found, strict=True))
        except Exception as error:  # noqa: BLE001  raised again in the test's own thread
            errors.append(error)
            world._barrier.abort()

    threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    assert all(messages == world.messages[0] for messages in world.messages)
    return results


@dataclass
class Layer:
    """One batch normalization with random parameters, and what it should compute.

    Attributes:
        shape: Shape of X.
        axis: The channel axis.
        dtype: Type of X.
        seed: Of the numbers.
    """

    shape: tuple[int, ...]
    axis: int = 1
    dtype: Any = F32
    parameter_dtype: Any = None
    epsilon: float = 1e-3
    momentum: float = 0.9
    correction: int = 0
    ghost: int = 0
    mean: float = 0.0
    std: float = 1.0
    seed: int = 0
    parameters: Arrays = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        channels = self.shape[self.axis]
        kind = self.parameter_dtype or (F64 if self.dtype == F64 else F32)
        self.parameters = {
            "scale": rng.uniform(0.5, 2.0, channels).astype(kind),
            "B": rng.normal(size=channels).astype(kind),
            "input_mean": rng.normal(size=channels).astype(kind),
            "input_var": rng.uniform(0.5, 2.0, channels).astype(kind),
        }

    def x(self, seed: int = 1, batch: int | None = None) -> Array:
        """Return random data."""
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        rng = np.random.default_rng(seed)
        return np.asarray(self.mean + self.std * rng.standard_normal(shape)).astype(self.dtype)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that all normalizations share."""
        return {"epsilon": self.epsilon, "momentum": self.momentum}

    @property
    def resolved(self) -> Resolved:
        """The layer as the reference knows it, with the numbers that float attributes hold."""
        return Resolved(
            api="tf_keras",
            input_shape=tuple(None for _ in self.shape[:1]) + self.shape[1:],
            dtype="float64",
            parameter_dtype="float64",
            parameter_shape=(self.shape[self.axis],),
            axes=(self.axis % len(self.shape),),
            momentum=float(np.float32(self.momentum)),
            epsilon=float(np.float32(self.epsilon)),
            center=True,
            scale=True,
            trainable=True,
            fused=False,
            synchronized=True,
            running_var_correction=self.correction,
            virtual_batch_size=self.ghost,
            renorm=None,
            adjustment=None,
            mask_rule="weights",
        )

    @property
    def state(self) -> reference.State:
        """The parameters in float64."""
        wide = {name: value.astype(np.float64) for name, value in self.parameters.items()}
        return reference.State(wide["scale"], wide["B"], wide["input_mean"], wide["input_var"])

    def forward(self, xs: Sequence[Array], *, training: bool = True) -> reference.Forward:
        """Return what the reference computes for the batches of all replicas."""
        return reference.forward(self.resolved, [x.astype(np.float64) for x in xs], self.state, training=training)

    def expected(self, xs: Sequence[Array]) -> list[Arrays]:
        """Return the outputs of ``SyncBatchNormalization`` in training mode for each replica, in float64."""
        found = self.forward(xs)
        if found.count:
            saved = (found.mean, found.inv_std) if self.ghost else (found.mean[0], found.inv_std[0])
        else:  # the operator then has the statistics that it was given
            saved = (self.state.running_mean, 1 / np.sqrt(self.state.running_var + self.resolved.epsilon))
        return [
            {
                "Y": y,
                "running_mean": found.state.running_mean,
                "running_var": found.state.running_var,
                "saved_mean": saved[0],
                "saved_inv_std": saved[1],
                "count": np.float64(found.count),
            }
            for y in found.ys
        ]


def batch_norm(layer: Layer, opset: int, outputs: int = 3, *, open_batch: bool = False, **more: Any) -> ir.Model:
    """Return a model of one ``BatchNormalization`` in training mode, of any opset; outputs are Y, running_mean, …"""
    names = ["Y", "running_mean", "running_var", "saved_mean", "saved_var"][:outputs]
    attributes = {**layer.attributes(), **more}
    if opset >= 14:
        attributes["training_mode"] = 1
    if opset < 6:
        attributes["consumed_inputs"] = [0, 0, 0, 1, 1]
    node = onnx.helper.make_node("BatchNormalization", ["X", *layer.parameters], names, name="bn", **attributes)
    statistics = (layer.parameters["input_mean"].dtype, 1)
    types = [(layer.dtype, len(layer.shape)), statistics, statistics, (layer.dtype, 1), (layer.dtype, 1)]
    shapes = {"X": ["N", *layer.shape[1:]]} if open_batch else None
    state = ("input_mean", "input_var")
    return model_of(
        [node],
        {"X": layer.x(), **{name: layer.parameters[name] for name in state}},
        dict(zip(names, types, strict=False)),
        opset=opset,
        constants={name: value for name, value in layer.parameters.items() if name not in state},
        shapes=shapes,
    )


def sync_batch_norm(
    layer: Layer, *, group: str = "", open_batch: bool = False, training: bool = True, opset: int = 17, **more: Any
) -> ir.Model:
    """Return a model of one ``SyncBatchNormalization`` with all its outputs."""
    names = ["Y", "running_mean", "running_var", "saved_mean", "saved_inv_std", "count"]
    attributes = {
        **layer.attributes(),
        "axis": layer.axis,
        "group": group,
        "training_mode": int(training),
        "running_var_correction": layer.correction,
        "virtual_batch_size": layer.ghost,
        **more,
    }
    written = names if training else ["Y", "", "", *names[3:]]
    node = onnx.helper.make_node(
        "SyncBatchNormalization", ["X", *layer.parameters, ""], written, name="bn", domain="bnpass", **attributes
    )
    running = (layer.parameters["input_mean"].dtype, 1)
    types = {"Y": (layer.dtype, len(layer.shape)), "running_mean": running, "running_var": running, "count": (F64, 0)}
    saved = (F64, 2 if layer.ghost else 1)
    shapes = {"X": ["N", *layer.shape[1:]]} if open_batch else None
    feeds = {"X": layer.x(), **layer.parameters}
    return model_of(
        [node], feeds, {name: types.get(name, saved) for name in written if name}, shapes=shapes, opset=opset
    )


def close(got: Array, want: Array, *, units: float = 8.0, worked_in: Any = F64) -> None:
    """Hold a result to so many units in the last place of the largest number, or of 1, in the coarser of two types."""
    assert np.shape(got) == np.shape(want)
    eps = max(float(ml_dtypes.finfo(dtype).eps) for dtype in (got.dtype, worked_in))
    largest = max(1.0, float(np.abs(want).max(initial=0.0)))
    error = np.abs(np.asarray(got, np.float64) - want).max(initial=0.0)
    assert error <= units * eps * largest, f"{error} > {units} · {eps} · {largest}"
