"""Train a model under MirroredStrategy on two logical CPU devices, and export it, for the test that starts this.

    python tests/exporting/mirrored_steps.py keras|tf_keras FOLDER

Writes inference.onnx and training.onnx, and for each step what every replica was given, what it gave, and the
variables afterwards.
"""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPLICAS, STEPS, SHARES = 2, 3, (5, 3)


def main(flavour: str, target: str) -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import onnx_ir as ir
    import tensorflow as tf

    if flavour == "keras":
        import keras
    else:
        import tf_keras as keras
    from bnpass.exporting.model import export_model
    from bnpass.exporting.options import ExportOptions
    from tests.exporting.live import make_lively, variable_values

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    with strategy.scope():
        given = keras.Input((4, 3), name="x")
        x = keras.layers.Dense(5)(given)
        x = keras.layers.BatchNormalization(synchronized=True, momentum=0.8)(x)
        x = keras.layers.ReLU()(x)
        model = keras.Model(given, keras.layers.BatchNormalization(synchronized=True, momentum=0.6)(x))
        make_lively(model)
    rng, found, folder = np.random.default_rng(0), {}, Path(target)
    for training in (False, True):
        exported = export_model(model, ExportOptions(training=training))
        ir.save(exported.model, folder / f"{'training' if training else 'inference'}.onnx")
    found["inference/x"] = rng.normal(size=(4, 4, 3)).astype(np.float32)
    found["inference/y"] = np.asarray(model(found["inference/x"], training=False))

    @tf.function
    def step(x: Any) -> Any:
        return strategy.run(lambda local: model(local, training=True), args=(x,))

    for number in range(STEPS):
        xs = [rng.normal(r, 1 + r, (n, 4, 3)).astype(np.float32) for r, n in enumerate(SHARES)]
        spread = strategy.experimental_distribute_values_from_function(
            lambda context, xs=xs: tf.constant(xs[context.replica_id_in_sync_group])
        )
        ys = strategy.experimental_local_results(step(spread))
        found |= {f"{number}/x/{r}": x for r, x in enumerate(xs)} | {f"{number}/y/{r}": y for r, y in enumerate(ys)}
        found |= {f"{number}/state/{name}": value for name, value in variable_values(model).items()}
    np.savez(folder / "steps.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
