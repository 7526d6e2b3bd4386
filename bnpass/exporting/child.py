"""A file is exported in a process of its own: TensorFlow fills memory, warns a lot, and can die.

    python -m bnpass.exporting.child REQUEST.json

The answer is ``answer.json`` in the folder of the request, with the model beside it, and that of its constraints.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import BnpassError
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.source import Source

if TYPE_CHECKING:
    from bnpass.exporting.work import Done

MODEL, CONSTRAINTS, ANSWER = "model.onnx", "constraints.onnx", "answer.json"


def main(request: str) -> int:
    """Carry a request out and write the answer."""
    folder = Path(request).parent
    job = json.loads(Path(request).read_text(encoding="utf-8"))
    try:
        answer = _work(job, folder)
    except BnpassError as error:
        notes = [note for note in getattr(error, "__notes__", ()) if note]
        answer = {"error": type(error).__name__, "message": "; ".join([str(error), *notes])}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _work(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from bnpass.verification.prepared import write_model

    given = job["options"]
    if given["signature"] is not None:
        given["signature"] = [(tuple(shape), dtype) for shape, dtype in given["signature"]]
    source = Source(Path(job["path"]), job["kind"])
    done = _exported(source, ExportOptions(**given), trust=job["trust"], sync=job["sync"])
    write_model(done.model, folder / MODEL)
    if done.constraints is not None:
        write_model(done.constraints, folder / CONSTRAINTS)
    return done.to_json()


def _exported(source: Source, options: ExportOptions, *, trust: bool, sync: bool) -> "Done":
    """Export a file: by its layers, or by its graph if it has none."""
    from bnpass.exporting.graphs import read_graph_def, trace_graph_def, trace_saved_model
    from bnpass.exporting.loading import load_model, synchronize
    from bnpass.exporting.work import carry_out, carry_out_graph

    if source.kind == "saved_model":
        return carry_out_graph(trace_saved_model(source.path, options.signature_key, options.training), options)
    if source.kind == "graph_def":
        graph_def = read_graph_def(source.path)
        ends = (options.inputs, options.outputs)
        return carry_out_graph(trace_graph_def(graph_def, *ends, training=options.training), options)
    model = load_model(source, trust=trust)
    if sync:
        synchronize(model)
    return carry_out(model, options)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the same file on every machine
    sys.exit(main(sys.argv[1]))
