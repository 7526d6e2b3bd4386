"""Models of Keras and TensorFlow become ONNX with their batch normalization intact.

source.py     which framework a file needs, found before TensorFlow is imported
loading.py    a file becomes a live model
capture/      batch normalization is intercepted while the model is traced: one marker per call
trace.py      a live model becomes a frozen graph with markers, and a list of its state
converter.py  tf2onnx turns everything but the markers into ONNX
assemble.py   a marker becomes a BatchNormalization, or the operators of ``layers``
"""
