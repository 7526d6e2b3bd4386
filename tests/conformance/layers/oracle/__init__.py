"""The process in which TensorFlow runs: the only files here that import it."""
