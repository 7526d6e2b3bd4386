"""Run a small convolutional network of Keras in training mode, for the test that starts this as a process.

    python training_steps.py keras|tf_keras FILE.npz

Writes its weights, and for five batches the outputs and the moving statistics after each.
"""

import os
import sys

STEPS, CHANNELS = 5, (8, 16, 12)


def main(flavour: str, target: str) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(flavour == "tf_keras"))
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np

    if flavour == "keras":
        import keras
    else:
        import tf_keras as keras
    layers = keras.layers
    assert layers.BatchNormalization.__module__.split(".")[0] == flavour
    x = given = keras.Input((12, 12, 3))
    for number, channels in enumerate(CHANNELS):
        x = layers.Conv2D(channels, 3, padding="same", name=f"conv{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU()(x)
    model = keras.Model(given, layers.GlobalAveragePooling2D()(x))
    rng, found = np.random.default_rng(0), {}
    for number in range(len(CHANNELS)):
        conv, norm = model.get_layer(f"conv{number}"), model.get_layer(f"bn{number}")
        conv.set_weights([rng.normal(0, 0.2, w.shape) for w in conv.get_weights()])
        norm.set_weights([rng.uniform(0.5, 2, w.shape) for w in norm.get_weights()])
        found |= {f"conv{number}_{i}": w for i, w in enumerate(conv.get_weights())}
        found |= {f"bn{number}_{i}": w for i, w in enumerate(norm.get_weights())}
    for step in range(STEPS):
        batch = rng.normal(step, 1 + step, (4 + step, 12, 12, 3)).astype(np.float32)
        found |= {f"x_{step}": batch, f"y_{step}": np.asarray(model(batch, training=True))}
        for number in range(len(CHANNELS)):
            _, _, mean, var = model.get_layer(f"bn{number}").get_weights()
            found |= {f"mean{number}_{step}": mean, f"var{number}_{step}": var}
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
