"""Run every model of a folder in the ONNX Runtime that is installed, with and without its optimizations.

    python run_cases.py FOLDER [LIBRARY] < NAMES

Needs nothing but onnxruntime and NumPy, of any age. NAME.onnx is fed NAME.npz; what comes out is NAME.LEVEL.npz, or
NAME.LEVEL.txt with the error. LIBRARY is a library of kernels for the session to register. The work is announced line
by line, so that a crash can be told from what came before.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
FATAL = 4


def run(folder: Path, name: str, level: str, libraries: "list[str]") -> None:
    """Run one model once."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = FATAL
    options.intra_op_num_threads = 1
    with np.load(folder / (name + ".npz")) as feeds:
        inputs = {key: feeds[key] for key in feeds.files}
    try:
        for library in libraries:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            str(folder / (name + ".onnx")), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(None, inputs)
    except Exception as error:  # noqa: BLE001 - whatever the runtime of the day calls it
        (folder / (name + "." + level + ".txt")).write_text(type(error).__name__ + ": " + str(error), encoding="utf-8")
        return
    np.savez(str(folder / (name + "." + level + ".npz")), *results)


def main() -> None:
    """Run the cases that are named on standard input."""
    onnxruntime.set_default_logger_severity(FATAL)
    folder, *libraries = sys.argv[1:]
    for name in sys.stdin.read().split():
        for level in LEVELS:
            print(name, level, flush=True)
            run(Path(folder), name, level, libraries)


if __name__ == "__main__":
    main()
