"""The layers of TensorFlow and Keras against the reference, the function bodies and the expansion."""
