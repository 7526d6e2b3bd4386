"""Build architectures of keras.applications, export them with bnpass, and say what they were.

    python tests/exporting/build_family.py keras|tf_keras FOLDER NAME [NAME.untrained …]

Writes NAME.framework.onnx, and beside it how many calls of batch normalization the model makes, images, and what Keras
computes of them; or NAME.framework.error. Untrained: as its constructor leaves it, with biases of 0.
"""

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def counted_calls(norm: Any) -> Iterator[list[str]]:
    """Collect the layers whose batch normalization Keras itself calls, one name for each call."""
    made: list[str] = []
    original = norm.call

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self.name)
        return original(self, *args, **kwargs)

    with mock.patch.object(norm, "call", call):
        yield made


def build(name: str, framework: str, target: Path, *, trained: bool) -> None:
    """Build and export one architecture; its file appears when everything else is there."""
    import numpy as np
    import onnx_ir as ir
    import zoo

    from bnpass.exporting.model import export_model
    from bnpass.exporting.options import ExportOptions

    family, keras = zoo.FAMILIES[name], importlib.import_module(framework)
    keras.utils.set_random_seed(zoo.SEED)
    rng = np.random.default_rng(zoo.SEED)
    architecture = getattr(keras.applications, name)
    model = architecture(weights=None, input_shape=(family.small, family.small, 3), classifier_activation=None)
    if trained:
        zoo._make_trained(model, keras, rng, zoo._images(rng, family, family.small, 4))
    images = zoo._images(rng, family, family.small, 2)
    with counted_calls(keras.layers.BatchNormalization) as calls:
        expected = np.asarray(model(images, training=False))
    exported = export_model(model, ExportOptions())
    np.savez(target.with_suffix(".npz"), images=images, expected=expected)
    target.with_suffix(".json").write_text(json.dumps({"calls": len(calls)}), encoding="utf-8")
    unfinished = target.with_suffix(".unfinished")
    ir.save(exported.model, unfinished)
    unfinished.rename(target)
    keras.backend.clear_session()


def main(framework: str, folder: Path, kinds: list[str]) -> int:
    """Build all that is asked for, whatever becomes of one of them."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    sys.path[:0] = [str(ROOT), str(ROOT / "models")]
    for kind in kinds:
        name, _, untrained = kind.partition(".")
        target = folder / f"{name}.{framework}{'.untrained' if untrained else ''}.onnx"
        try:
            build(name, framework, target, trained=not untrained)
        except Exception:  # noqa: BLE001  the tests of this one show it
            target.with_suffix(".error").write_text(traceback.format_exc(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
