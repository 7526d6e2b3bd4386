"""A session of ONNX Runtime whose inputs and outputs stay where they are."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from layer import THREADS, Pass
from numpy.typing import NDArray


def options() -> onnxruntime.SessionOptions:
    """Return the options of every session here."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = THREADS
    made.inter_op_num_threads = 1
    return made


def bound(
    session: onnxruntime.InferenceSession,
    inputs: Sequence[NDArray[np.floating]],
    outputs: Sequence[NDArray[np.floating]],
) -> Pass:
    """Bind arrays to the inputs and outputs of a session, in their order; the first output is the result."""
    binding = session.io_binding()
    kept = []
    for value, array in zip(session.get_inputs(), inputs, strict=True):
        kept.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_input(value.name, kept[-1])
    for value, array in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run() -> None:
        session.run_with_iobinding(binding)

    def result() -> NDArray[np.floating]:
        assert kept  # noqa: S101  the binding has their addresses alone
        outputs[0].fill(np.nan)
        run()
        return outputs[0]

    return Pass(run, result)
