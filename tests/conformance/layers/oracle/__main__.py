"""Run the real layers: ``python -m tests.conformance.layers.oracle PROCESS REQUEST RESULT``.

PROCESS is "legacy" (with TF_USE_LEGACY_KERAS=1), "keras3" or "graph" (TensorFlow 2 behaviour disabled), the first two
with "-N" for N replicas. What a layer raises is a result too: its type and its first lines.
"""

import sys
from pathlib import Path
from typing import Any

from tests.conformance.layers.cases import Case, from_plain
from tests.conformance.layers.exchange import Arrays, part, read, write

MOST_REPLICAS = 4


def _prepare(process: str) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if process == "graph":
        tf.compat.v1.disable_v2_behavior()
        return
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * MOST_REPLICAS)


def _run(case: Case, arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    from tests.conformance.layers.oracle import eager, graph, probes, replicas

    if case.row == "probe":
        return probes.run(case, arrays)
    if case.graph:
        return graph.run(case, arrays)
    if len(case.shares) > 1:
        return replicas.run(case, arrays)
    return eager.run(case, arrays)


def main(process: str, request: Path, result: Path) -> None:
    """Run every case of a request."""
    _prepare(process)
    plain, arrays = read(request)
    facts: dict[str, Any] = {}
    found: Arrays = {}
    for one in plain:
        case = from_plain(one)
        assert case.process == process, case.id
        try:
            fact, values = _run(case, part(arrays, case.id))
        except Exception as error:  # noqa: BLE001  whatever a layer raises is what the case is about
            fact, values = {"error": type(error).__name__, "message": str(error)[:2000]}, {}
        facts[case.id] = fact
        found |= {f"{case.id}/{key}": value for key, value in values.items()}
    write(result, facts, found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
