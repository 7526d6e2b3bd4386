"""Take a few steps of a training export of `digits_sync` in processes of MPI, and compare with Keras.

    mpiexec -n 4 python models/digits_sync_replicas.py models/digits_sync.training.onnx

Each process is one replica with its own images. After a step, every updated statistic goes back in where the metadata
of the model say. Rank 0 prints how far the statistics are from those that Keras had under MirroredStrategy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from digits import load_train_split
from digits_sync import HERE, NAME, REPLICAS, batches

import bnpass.runtime

TOLERANCE = 1e-5
"""Of the largest statistic; Keras adds up in float32, in one pass."""


def main(path: str) -> int:
    group = bnpass.runtime.mpi()
    if group.size != REPLICAS:
        raise SystemExit(f"Keras had {REPLICAS} replicas: start this with mpiexec -n {REPLICAS}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the ranks share the processors
    options.log_severity_level = 3  # a default that is an input is no mistake here
    session = bnpass.runtime.session(path, group=group, options=options)
    lines = json.loads(session.get_modelmeta().custom_metadata_map["bnpass.state"])
    updated = {line["output"]: line for line in lines if line["output"]}
    state, worst = {}, 0.0
    with np.load(HERE / f"{NAME}.npz") as keras:
        for step, shares in enumerate(batches(load_train_split())):
            after = session.run(list(updated), {"image": shares[group.rank], **state})
            state = {line["input"]: value for line, value in zip(updated.values(), after, strict=True)}
            for line, value in zip(updated.values(), after, strict=True):
                expected = keras[line["variable"]][step]
                worst = max(worst, float(np.abs(value - expected).max() / np.abs(expected).max()))
    if group.rank == 0:
        print(f"{len(updated)} statistics, {step + 1} steps, {group.size} replicas: within {worst:.1e} of Keras")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]))))
