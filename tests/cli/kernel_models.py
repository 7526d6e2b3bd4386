"""Training models for the kernels."""

import numpy as np
import onnx_ir as ir

from tests.support.build import batch_norm, model

LAYERS = 3
_NORM = "axis = 1, epsilon = 1.0e-3, momentum = 0.9, training_mode = 1, running_var_correction = 0"
_GROUP = 'virtual_batch_size = 0, group = "{group}", collective_id = {id}'


def steps(group: str = "world", samples: str = "N") -> ir.Model:
    """Return three batch normalizations with a Tanh between, forward, and their gradients, backward."""
    forward, backward, outputs, constants = [], [], [f"float[{samples}, 4, 3] dx0"], {}
    for i in range(LAYERS):
        shared = _GROUP.format(group=group, id=i)
        into = "x" if i == 0 else f"t{i}"
        forward.append(
            f"[bn{i}] y{i}, rm{i}, rv{i}, sm{i}, si{i}, n{i} = "
            f"bnpass.SyncBatchNormalization <{_NORM}, {shared}> ({into}, s{i}, b{i}, m{i}, v{i})"
        )
        forward.append(f"t{i + 1} = Tanh (y{i})")
        outputs += [f"float[4] rm{i}", f"float[4] rv{i}", f"float[4] ds{i}", f"float[4] db{i}"]
        constants |= {f"{name}{i}": array for name, array in batch_norm(4, seed=i).items()}
    for i in reversed(range(LAYERS)):
        shared = _GROUP.format(group=group, id=2 * LAYERS - i)
        above = "dy" if i == LAYERS - 1 else f"dx{i + 1}"
        into = "x" if i == 0 else f"t{i}"
        gradient = f"bnpass.SyncBatchNormalizationGrad <axis = 1, {shared}>"
        read = f"g{i}, {into}, s{i}, sm{i}, si{i}, n{i}"
        backward += [
            f"q{i} = Mul (t{i + 1}, t{i + 1})",
            f"w{i} = Sub (one, q{i})",
            f"g{i} = Mul ({above}, w{i})",
            f"[grad{i}] dx{i}, ds{i}, db{i} = {gradient} ({read})",
        ]
    shape = f"float[{samples}, 4, 3]"
    head = f"g ({shape} x, {shape} dy) => ({shape} t{LAYERS}, {', '.join(outputs)})"
    return model(f"{head} {{ {chr(10).join([*forward, *backward])} }}", constants | {"one": np.ones((), np.float32)})
