"""Time several models in ONNX Runtime, side by side in one process.

    python tools/bench/latency.py FILE.onnx FILE.onnx ... [--rounds 5] [--seconds 0.3] [--brightest 255]

Prints one JSON list: for each file the median time of a run in each round, in seconds, or why there is none. The files
have inputs in common; an open dimension is 1. All optimizations are on.

All sessions live throughout, and take turns: in each round every model runs for a while, in an order that rotates by
one. Without precautions they disturb each other, since the threads of a session keep spinning after a run and take
the processors from the next one: factors of ten were seen on two cores. `--threads-wait` is what is done about it:

sleep   threads never spin (`session.intra_op.allow_spinning`): as fast as the other at best, and steadier if anything
        else runs (MobileNetV2 on two busy cores, four equal sessions: 1.39–1.49 ms against 1.54–2.09 ms)
stop    threads spin within a run and stop at its end (`session.force_spinning_stop`): nearest to one session alone
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

WAITS = {"stop": ("session.force_spinning_stop", "1"), "sleep": ("session.intra_op.allow_spinning", "0")}
LEAST_RUNS = 3
"""In a round, of a model that takes longer than the round should."""
Inputs = dict[str, NDArray[np.generic]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5, help="those that count; a short one comes first (default 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="that a model runs for in a round (default 0.3)")
    parser.add_argument("--threads", type=int, default=2, help="of each session (default 2)")
    parser.add_argument("--threads-wait", choices=list(WAITS), default="sleep", help="see above (default sleep)")
    parser.add_argument("--brightest", type=float, default=1.0, help="inputs lie between 0 and this (default 1)")
    arguments = parser.parse_args()
    found = [_session(path, arguments) for path in arguments.models]
    times: list[list[float] | str] = [session if isinstance(session, str) else [] for session in found]
    inputs = next((_inputs(session, arguments.brightest) for session in found if not isinstance(session, str)), {})
    for number in range(arguments.rounds + 1):
        shift = number % len(found)
        for index in [*range(shift, len(found)), *range(shift)]:
            kept = times[index]
            if isinstance(kept, str):
                continue
            try:
                median = _round(found[index], inputs, arguments.seconds if number else 0.0)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
                times[index] = str(error).splitlines()[0][:300]
                continue
            if number:
                kept.append(median)
    print(json.dumps(times))
    return 0


def _session(path: Path, arguments: argparse.Namespace) -> Any:  # noqa: ANN401  of an untyped package, or why there is none
    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry(*WAITS[arguments.threads_wait])
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001
        return str(error).splitlines()[0][:300]


def _inputs(session: Any, brightest: float) -> Inputs:  # noqa: ANN401
    rng = np.random.default_rng(0)
    found: Inputs = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in value.shape]
        found[value.name] = rng.uniform(0, brightest, shape).astype(np.float32)
    return found


def _round(session: Any, inputs: Inputs, seconds: float) -> float:  # noqa: ANN401
    session.run(None, inputs)  # finds the caches as the model before left them
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        begin = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
