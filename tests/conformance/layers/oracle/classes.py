"""The classes that are meant; TF_USE_LEGACY_KERAS left out, tf.compat.v1.keras is silently that of Keras 3."""

_V2 = "tf_keras.src.layers.normalization.batch_normalization"
CLASSES = {
    "sync": (_V2, "SyncBatchNormalization"),
    "tf_keras": (_V2, "BatchNormalization"),
    "keras_v1": (f"{_V2}_v1", "BatchNormalization"),
    "tf1": ("tf_keras.src.legacy_tf_layers.normalization", "BatchNormalization"),
    "keras3": ("keras.src.layers.normalization.batch_normalization", "BatchNormalization"),
}
"""Module and name of each."""
