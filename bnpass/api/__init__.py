"""The verbs from end to end: load, edit, check, and write if the model came from a file."""
