"""The whole way of one small model: trained in replicas, exported, folded, served, and trained on elsewhere.

    python models/digits_sync.py                                 train; writes digits_sync.keras, .json and .npz
    python -m bnpass export models/digits_sync.keras             digits_sync.onnx: batch normalization intact
    python -m bnpass fold models/digits_sync.onnx                digits_sync.folded.onnx: gone, the same answers
    python -m bnpass export models/digits_sync.keras --training  digits_sync.training.onnx: statistics in and out
    mpiexec -n 4 python models/digits_sync_replicas.py models/digits_sync.training.onnx

Keras trains under `tf.distribute.MirroredStrategy`, on four logical CPUs, with `synchronized=True`. Then it goes on for
a few steps with other learning switched off, so that statistics alone move; `digits_sync.npz` holds them after each
step. The last command takes the same steps on the same images in four processes of MPI, and says how far they are off.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from digits import TEST_SIZE, Split, load_test_split, load_train_split
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

HERE = Path(__file__).resolve().parent
NAME = "digits_sync"
REPLICAS, STEPS, SHARE = 4, 5, 16
"""Replicas, steps in which statistics alone move, and images of each replica in one of them."""
TRAINING_SEED, EPOCHS, BATCH = 5, 12, 64


def build() -> "keras.Model":
    """Return the untrained network: 8 × 8 × 1 images in, ten logits out; three synchronized batch normalizations."""
    import keras
    from keras import layers

    x = image = layers.Input((8, 8, 1), name="image")
    for number, channels in enumerate((16, 24, 32)):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(synchronized=True, momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        x = layers.MaxPooling2D(name=f"pool{number}")(x) if number else x
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(10, name="digit")(x), name=NAME)


def batches(data: Split) -> NDArray[np.float32]:
    """Return the images of the steps: [STEPS, REPLICAS, SHARE, 8, 8, 1]."""
    count = STEPS * REPLICAS * SHARE
    return data.x[:count].reshape(STEPS, REPLICAS, SHARE, 8, 8, 1)


def go_on(model: "keras.Model", strategy: Any, data: Split) -> dict[str, NDArray[np.float32]]:  # noqa: ANN401
    """Let the moving statistics follow a few batches, in replicas, and return them after each."""
    import tensorflow as tf

    moving = [v for v in model.variables if "moving" in v.path]
    found: dict[str, list[NDArray[np.float32]]] = {v.path: [] for v in moving}

    @tf.function(autograph=False)
    def step(images: "tf.Tensor") -> None:
        strategy.run(lambda x: model(x, training=True), args=(images,))

    for shares in batches(data):
        given = strategy.experimental_distribute_values_from_function(
            lambda context, shares=shares: tf.constant(shares[context.replica_id_in_sync_group])
        )
        step(given)
        for variable in moving:
            found[variable.path].append(np.asarray(variable.numpy()))
    return {name: np.stack(values) for name, values in found.items()}


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a CPU run is the one that can be repeated

    import keras
    import tensorflow as tf

    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(REPLICAS)]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    keras.utils.set_random_seed(TRAINING_SEED)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    train, test = load_train_split(), load_test_split()
    with strategy.scope():
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(train.x, train.y, batch_size=BATCH, epochs=EPOCHS, verbose=2)

    served = build()  # without the optimizer, and without the strategy
    served.set_weights(model.get_weights())
    served.save(HERE / f"{NAME}.keras")
    right = int((served.predict(test.x, verbose=0).argmax(axis=1) == test.y).sum())
    np.savez(HERE / f"{NAME}.npz", **go_on(model, strategy, train))
    record = {
        "right": right,
        "test_size": TEST_SIZE,
        "training_seed": TRAINING_SEED,
        "epochs": EPOCHS,
        "replicas": REPLICAS,
        "versions": {m.__name__: m.__version__ for m in (keras, np, tf)},
    }
    (HERE / f"{NAME}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{right} of {TEST_SIZE} right; wrote {HERE}/{NAME}.*")


if __name__ == "__main__":
    main()
