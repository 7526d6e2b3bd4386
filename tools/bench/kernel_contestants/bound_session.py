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
    """Bind tensors of ONNX Runtime to the inputs and outputs of a session, in their order.

    They lie where its allocator puts them, aligned, as the tensors inside of a model do. Small outputs are the arrays
    themselves, which the other direction reads.
    """
    binding = session.io_binding()
    given = [_tensor(array) for array in inputs]
    first = _tensor(outputs[0])
    for value, tensor in zip(session.get_inputs(), given, strict=True):
        binding.bind_ortvalue_input(value.name, tensor)
    results = session.get_outputs()
    binding.bind_ortvalue_output(results[0].name, first)
    for value, array in zip(results[1:], outputs[1:], strict=True):
        binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run() -> None:
        session.run_with_iobinding(binding)

    def result() -> NDArray[np.floating]:
        assert given  # noqa: S101  the binding has their addresses alone
        first.update_inplace(np.full_like(outputs[0], np.nan))
        run()
        return first.numpy()

    return Pass(run, result)


def _tensor(array: NDArray[np.floating]) -> onnxruntime.OrtValue:
    """Return a copy of an array in memory of ONNX Runtime."""
    tensor = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype)
    tensor.update_inplace(np.ascontiguousarray(array))
    return tensor
