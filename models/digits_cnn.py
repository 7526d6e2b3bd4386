"""Train and export `digits_cnn`: a small real model with batch normalization in every usual place.

place                          layers                               in the exported file
after a convolution            Conv → BN → ReLU                     gone: in the Conv's weights and bias
after a depthwise convolution  DepthwiseConv → BN → ReLU            Conv(group = channels) → Mul → Add → Relu
after an activation            Conv(activation="relu") → BN         Conv → Relu → Mul → Add
before an activation           BN → ReLU → Conv, in a residual      Mul → Add → Relu → Conv
on a dense layer               Dense → BN → ReLU                    MatMul → Add → Mul → Add → Relu

`python models/digits_cnn.py` trains on scikit-learn's digits for a few seconds, prints the accuracy on
images it was not trained on, and writes three files beside itself: `digits_cnn.keras`, `digits_cnn.onnx`
and `digits_cnn.json` (what was measured, with which versions).

The ONNX file is what `model.export(..., format="onnx")`, Keras 3's own call, writes;
`tf2onnx.convert.from_keras` gives the same nodes. Keras 3 traces an inference BN as loose Mul and Add,
never as one op, and TensorFlow's constant folding then moves the scale into a *plain* convolution right
before it. So the first row is folded already when the user gets the file and the other four are not. That
is the usual state of an exported Keras model; nothing was arranged here to change it.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from digits import SPLIT_SEED, TEST_SIZE, Split, load_test_split, load_train_split
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

HERE = Path(__file__).resolve().parent
TRAINING_SEED = 11
EPOCHS = 30
BATCH = 32


def build() -> "keras.Model":
    """Return the untrained network: 8 × 8 × 1 images in, ten probabilities out."""
    import keras
    from keras import layers

    image = layers.Input((8, 8, 1), name="image")

    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)

    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ReLU(name="depthwise_relu")(x)

    x = layers.Conv2D(24, 1, activation="relu", name="pointwise")(x)
    x = layers.BatchNormalization(name="after_relu_bn")(x)
    x = layers.MaxPooling2D(name="pool")(x)

    shortcut = x
    x = layers.BatchNormalization(name="pre_bn1")(x)
    x = layers.ReLU(name="pre_relu1")(x)
    x = layers.Conv2D(24, 3, padding="same", use_bias=False, name="pre_conv1")(x)
    x = layers.BatchNormalization(name="pre_bn2")(x)
    x = layers.ReLU(name="pre_relu2")(x)
    x = layers.Conv2D(24, 3, padding="same", name="pre_conv2")(x)
    x = layers.Add(name="residual")([shortcut, x])

    x = layers.Conv2D(32, 3, activation="relu", name="head")(x)
    x = layers.BatchNormalization(name="head_bn")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)

    x = layers.Dense(32, name="dense")(x)
    x = layers.BatchNormalization(name="dense_bn")(x)
    x = layers.ReLU(name="dense_relu")(x)
    digit = layers.Dense(10, activation="softmax", name="digit")(x)
    return keras.Model(image, digit, name="digits_cnn")


def train(model: "keras.Model", data: Split) -> None:
    """Fit with Adam under a cosine schedule; the BN statistics are those of the training images."""
    import keras

    steps = EPOCHS * -(-len(data.x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(data.x, data.y, batch_size=BATCH, epochs=EPOCHS, verbose=2)


def export(model: "keras.Model", path: Path) -> None:
    """Write `model` as ONNX the way a Keras 3 user does."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = Path(folder) / path.name
        model.export(str(target), format="onnx", verbose=False)
        target.replace(path)


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of rows whose largest entry is the label."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a CPU run is the one that can be repeated

    import keras
    import onnxruntime as ort
    import sklearn
    import tensorflow as tf
    import tf2onnx

    keras.utils.set_random_seed(TRAINING_SEED)
    tf.config.experimental.enable_op_determinism()
    trained = build()
    train(trained, load_train_split())
    model = build()  # without the optimizer, whose state would triple the file
    model.set_weights(trained.get_weights())

    test = load_test_split()
    expected = model.predict(test.x, verbose=0)
    model.save(HERE / "digits_cnn.keras")
    export(model, HERE / "digits_cnn.onnx")

    session = ort.InferenceSession(HERE / "digits_cnn.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: test.x})
    difference = float(np.abs(probabilities - expected).max())
    if difference > 1e-5:
        raise SystemExit(f"ONNX Runtime and Keras differ by {difference:.2g}")

    record = {
        "test_accuracy": accuracy(probabilities, test.y),
        "test_size": TEST_SIZE,
        "split_seed": SPLIT_SEED,
        "training_seed": TRAINING_SEED,
        "epochs": EPOCHS,
        "parameters": model.count_params(),
        "keras_onnx_max_difference": difference,
        "versions": {m.__name__: m.__version__ for m in (keras, np, ort, sklearn, tf, tf2onnx)},
    }
    (HERE / "digits_cnn.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {record['test_accuracy']:.4f} on {TEST_SIZE} images; wrote {HERE}/digits_cnn.*")


if __name__ == "__main__":
    main()
