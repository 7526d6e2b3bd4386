"""Save small models in every format that the installed Keras and TensorFlow write; started by a test as a process.

python keras_files.py FOLDER
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def network(keras: Any, *, drop: bool = False, **arguments: Any) -> Any:
    """Return an untrained network with one batch normalization, whose statistics are not those it began with."""
    import numpy as np

    x = given = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="bn", **arguments)(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.5, name="drop")(x) if drop else x
    model = keras.Model(given, keras.layers.Dense(2, name="logits")(x))
    rng = np.random.default_rng(0)
    model.get_layer("bn").set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_layer("bn").get_weights()])
    return model


def freeze(model: Any, target: Path) -> None:
    """Write a frozen GraphDef."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")
    concrete = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    target.write_bytes(convert_variables_to_constants_v2(concrete).graph.as_graph_def().SerializeToString())


def main(folder: Path) -> None:
    import keras
    import tf_keras

    keras.utils.set_random_seed(0)
    folder.mkdir(exist_ok=True)
    network(keras, synchronized=True).save(folder / "keras3.keras")
    network(keras, drop=True).save(folder / "drop.keras")
    network(keras).save(folder / "keras3.h5")
    network(tf_keras, synchronized=True).save(folder / "tf_keras.keras")
    network(tf_keras).save(folder / "tf_keras.h5")
    network(tf_keras).save(folder / "saved_model")
    network(keras).export(folder / "exported", verbose=False)
    freeze(network(tf_keras), folder / "frozen.pb")
    network(tf_keras).save_weights(folder / "weights.h5")
    network(tf_keras, virtual_batch_size=2).save(folder / "ghost.keras")
    network(tf_keras, virtual_batch_size=2).save(folder / "ghost_saved")
    for package in (keras, tf_keras):
        given = package.Input((3,))
        package.Model(given, package.layers.Lambda(lambda x: x * 2, name="twice")(given)).save(
            folder / f"lambda_{package.__name__}.keras"
        )

    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x + 1

    keras.Sequential([keras.Input((3,)), Own(), keras.layers.BatchNormalization()]).save(folder / "own.keras")

    whole = (folder / "keras3.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.h5").write_bytes((folder / "keras3.h5").read_bytes()[:4000])
    (folder / "cut.pb").write_bytes((folder / "frozen.pb").read_bytes()[:-40])
    shutil.copytree(folder / "exported", folder / "cut_saved")
    (folder / "cut_saved" / "saved_model.pb").write_bytes((folder / "exported" / "saved_model.pb").read_bytes()[:-40])
    (folder / "text.keras").write_text("no model")
    (folder / "empty_folder").mkdir(exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
