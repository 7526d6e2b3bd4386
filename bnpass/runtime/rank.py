"""One replica among processes of MPI: ``mpiexec -n 4 python -m bnpass.runtime.rank REQUEST.json``.

Opens a model with the kernels and runs it on this rank's inputs, one set after the other. What happens is written to a
file of events, one JSON object per line, before and after each step; arrays travel as ``.npz`` without pickle.
"""

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from bnpass.errors import BnpassError
from bnpass.runtime.group import Groups, mpi
from bnpass.runtime.native_library import native_library
from bnpass.runtime.sessions import session

if TYPE_CHECKING:
    import onnxruntime

_GAVE_UP = 75
"""The exit code of a rank whose time was up."""


def main(request: str) -> int:
    """Carry out the request in the given JSON file."""
    job: dict[str, Any] = json.loads(Path(request).read_text(encoding="utf-8"))
    _leave_after(job["timeout_s"])
    with (Path(job["folder"]) / f"events-{os.getpid()}.jsonl").open("a", encoding="utf-8") as events:
        try:
            groups = mpi(groups=job["groups"], deadline=job["deadline_s"], library=job["provider"])
        except BnpassError as error:
            _announce(events, event="refused", kind=type(error).__name__, message=str(error))
            return 0
        description = native_library(job["provider"]).mpi_description()
        _announce(events, event="started", rank=groups.rank, size=groups.size, mpi=description)
        if groups.size == job["size"]:
            _work(job, groups, events)
    return 0


def _work(job: dict[str, Any], groups: Groups, events: TextIO) -> None:
    try:
        opened = _opened(job, groups)
    except Exception as error:  # noqa: BLE001  the runtime's own exception types are not public
        _announce(events, event="failed", rank=groups.rank, run=None, message=str(error))
        return
    outputs = [value.name for value in opened.get_outputs()]
    for run, files in enumerate(job["runs"]):
        target = str(Path(job["folder"]) / f"rank{groups.rank}-run{run}.npz")
        try:
            with np.load(files[groups.rank], allow_pickle=False) as given:
                feeds = {name: given[f"a{i}"] for i, name in enumerate(job["inputs"])}
            values = opened.run(outputs, feeds)
            np.savez(target, **{f"a{i}": value for i, value in enumerate(values)})
        except Exception as error:  # noqa: BLE001  as above
            _announce(events, event="failed", rank=groups.rank, run=run, message=str(error))
            _tell(job, groups, str(error))
            return  # a group that has failed stays failed
        _announce(events, event="done", rank=groups.rank, run=run, file=target, outputs=outputs)
    _announce(events, event="end", rank=groups.rank)


def _tell(job: dict[str, Any], groups: Groups, failure: str) -> None:
    """Tell the others, who may wait in a collective, unless they know."""
    for group in job["met_in"]:
        with suppress(BnpassError):
            groups.fail(f"replica {groups.rank} failed: {failure}", group=group)


def _opened(job: dict[str, Any], groups: Groups) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # there is a process for each core, or more
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return session(job["model"], provider=job["provider"], group=groups, options=options)


def _leave_after(seconds: float) -> None:
    """End this process at its deadline even if whoever started it is gone."""
    timer = threading.Timer(seconds, os._exit, [_GAVE_UP])
    timer.daemon = True
    timer.start()


def _announce(events: TextIO, **event: object) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
