"""Print a digest of what a network is exported as: ``python tests/exporting/export_bytes.py keras|tf_keras``."""

import hashlib
import importlib
import os
import sys


def main(framework: str) -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    import onnx_ir as ir

    from bnpass.exporting.model import export_model
    from bnpass.exporting.options import ExportOptions

    keras = importlib.import_module(framework)
    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = given = keras.Input((8, 8, 3))
    for _ in range(2):
        a = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
        x = layers.Concatenate()([layers.ReLU()(a), layers.MaxPooling2D(2, 1, "same")(x)])
    model = keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    digest = hashlib.sha256()
    for training in (False, True):
        exported = ir.to_proto(export_model(model, ExportOptions(training=training)).model)
        digest.update(exported.SerializeToString(deterministic=True))
    print(digest.hexdigest())  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
