"""Build a network of keras.applications and export it, once, by one tool: what ``export_speed.py`` times.

    python tools/bench/export_one.py bnpass|tf2onnx|neither FAMILY keras|tf_keras FILE.onnx

"neither" ends where an export would begin.
"""

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from measure import ROOT

OPSET = 17


def network(family: str, framework: str) -> tuple[Any, int]:
    """Return a network whose weights all differ, as those of a trained one, and the size of its images."""
    sys.path.insert(0, str(ROOT / "models"))
    import numpy as np
    import zoo

    keras, size = importlib.import_module(framework), zoo.FAMILIES[family].size
    model = getattr(keras.applications, family)(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if len(variable.shape) == 1:  # kernels are random already; biases and statistics are not
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model, size


def by_bnpass(model: Any, _: int, target: Path) -> None:  # noqa: ANN401  a model of Keras
    """Export as ``bnpass.export`` does it without its check."""
    import onnx_ir as ir

    from bnpass.exporting.model import export_model
    from bnpass.exporting.options import ExportOptions

    ir.save(export_model(model, ExportOptions(opset=OPSET)).model, target)


def by_tf2onnx(model: Any, size: int, target: Path) -> None:  # noqa: ANN401  a model of Keras
    """Export as the documentation of tf2onnx has it; the jit of grouped convolutions is taken off, as it must be."""
    import tensorflow as tf
    import tf2onnx
    import zoo

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    signature = [tf.TensorSpec((None, size, size, 3), tf.float32, name="image")]
    with zoo._grouped_convolutions_without_jit():  # noqa: SLF001  in no family but RegNet
        tf2onnx.convert.from_keras(model, signature, opset=OPSET, output_path=str(target))


def main(tool: str, family: str, framework: str, target: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    model, size = network(family, framework)
    if tool != "neither":
        {"bnpass": by_bnpass, "tf2onnx": by_tf2onnx}[tool](model, size, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
