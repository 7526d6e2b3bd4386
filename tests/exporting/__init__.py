"""The exporter: live models of Keras 3 and tf_keras become ONNX models that compute the same."""
