"""One replica of `replica_steps.py`: a process of MPI that takes training steps of a stack of batch normalizations.

    mpiexec -n RANKS python tools/bench/replica.py SHAPE LAYERS WARM_UP STEPS FILE

Steps with statistics of all replicas and with those of this one take turns; a barrier is before each. Rank 0 writes
FILE: how many there are, and the milliseconds of every step, that is of its slowest replica.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.emit import Emit
from bnpass.runtime import Groups, mpi, session
from bnpass.runtime.group import WORLD

Array = NDArray[Any]

GROUPS = {"unsynchronized": "", "synchronized": WORLD}
BARRIER = 1 << 20
"""The collective id of everything that is no part of a step."""


def stack(layers: int, shape: tuple[int, ...], group: str) -> bytes:
    """Return a model: ``layers`` batch normalizations, one behind the other, and all their gradients.

    Args:
        layers: How many.
        shape: Of X, dY and dX: float32, channels at axis 1.
        group: Over which replicas statistics and their gradients are; "" for this one alone.

    Returns:
        A serialized model without bodies, from X and dY to dX and what else a step updates.
    """
    op, channels = Emit(), shape[1]
    x, dy = (ir.val(name, ir.DataType.FLOAT, shape) for name in ("X", "dY"))
    scale, B, mean, var = (op.floats(np.full(channels, number), np.float32) for number in (1.1, 0.1, 0.0, 1.0))
    updates: list[ir.Value] = []
    inputs, saved = [x], []
    for number in range(layers):
        y, *running, saved_mean, saved_inv_std, total = op.many(
            "SyncBatchNormalization",
            [inputs[-1], scale, B, mean, var, None],
            [f"{name}{number}" for name in ("Y", "running_mean", "running_var", "mean", "inv_std", "total")],
            domain=DOMAIN, axis=1, epsilon=1e-3, momentum=0.9, training_mode=1, running_var_correction=0,
            virtual_batch_size=0, group=group, collective_id=number,
        )  # fmt: skip
        inputs.append(y)
        saved.append((saved_mean, saved_inv_std, total))
        updates += running
    gradient = dy
    for number in reversed(range(layers)):
        gradient, *parameters = op.many(
            "SyncBatchNormalizationGrad",
            [gradient, inputs[number], scale, *saved[number], None],
            [f"{name}{number}" for name in ("dX", "dscale", "dB")],
            domain=DOMAIN, axis=1, virtual_batch_size=0, group=group, collective_id=2 * layers - 1 - number,
        )  # fmt: skip
        updates += parameters
    results = [gradient, *updates]
    for value in results:
        value.dtype = ir.DataType.FLOAT
        value.shape = ir.Shape(shape if value is gradient else (channels,))
    graph = ir.Graph([x, dy], results, nodes=op.nodes, opset_imports={"": 18, DOMAIN: VERSION}, name="stack")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())


def opened(model: bytes, groups: Groups) -> onnxruntime.InferenceSession:
    """Return a session of one thread that leaves its core to others when it has nothing to do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return session(model, group=groups, options=options)


def check(synchronized: Array, alone: Array, groups: Groups) -> None:
    """Hold the running mean of the first layer against the mean of those of the replicas, whose shares are equal."""
    wanted = groups.all_reduce(alone.astype(np.float64), "mean", collective_id=BARRIER)
    if not np.allclose(synchronized, wanted, rtol=1e-5, atol=1e-6):
        raise SystemExit("the replicas do not have the statistics of all samples")


def milliseconds(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Mapping[str, Array], steps: int, groups: Groups
) -> Array:
    """Return what steps of each session took the slowest replica, [steps, sessions]."""
    found = np.zeros((steps, len(sessions)))
    for number in range(steps):
        for column, one in enumerate(sessions.values()):
            groups.all_reduce(np.zeros(1), collective_id=BARRIER)
            begin = time.perf_counter()
            one.run(None, feeds)
            found[number, column] = 1e3 * (time.perf_counter() - begin)
    return np.asarray(groups.all_reduce(found, "max", collective_id=BARRIER))


def main() -> None:
    shape, layers, warm_up, steps = tuple(map(int, sys.argv[1].split("x"))), *map(int, sys.argv[2:5])
    with mpi() as groups:
        generator = np.random.default_rng(groups.rank)
        feeds = {name: generator.standard_normal(shape, np.float32) + np.float32(0.5) for name in ("X", "dY")}
        sessions = {name: opened(stack(layers, shape, group), groups) for name, group in GROUPS.items()}
        alone, together = (one.run(None, feeds)[1] for one in sessions.values())
        check(together, alone, groups)
        milliseconds(sessions, feeds, warm_up, groups)
        found = milliseconds(sessions, feeds, steps, groups)
        if groups.rank == 0:
            times = {name: list(found[:, column]) for column, name in enumerate(sessions)}
            answer = {"ranks": groups.size, "ms": times}
            Path(sys.argv[5]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
