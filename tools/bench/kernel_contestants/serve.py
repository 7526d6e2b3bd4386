"""One contestant in a process of its own: ``python serve.py MODULE``, then a request per line, in JSON.

    {"do": "open", "shape": [...], "layout": "NHWC", "folder": "..."}   -> {"passes": ["forward", "backward"]}
    {"do": "run", "pass": "forward", "repeats": 9}                      -> {"seconds": the median}
    {"do": "save", "pass": "forward", "file": "..."}                    -> {}: the result as raw float32

The first line that is written says who it is, or what is missing. It answers a run when its threads have come to rest,
so that none of them spins while another contestant is measured.
"""

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layer import Layer, Pass

LOOK_S, LONGEST_S = 0.01, 2.0
BUSY = 0.1
"""Of a core: less is rest."""


def main(name: str) -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        contestant = importlib.import_module(name)
        contestant.start()
    except Exception as error:  # noqa: BLE001  whatever it is, it goes into the table
        answer({"missing": f"{type(error).__name__}: {error}"})
        return 0
    answer({"version": contestant.version(), "note": contestant.NOTE})
    passes: dict[str, Pass] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            passes = {}  # before the new ones: memory
            layer = Layer(tuple(request["shape"]), request["layout"], Path(request["folder"]))
            passes = contestant.opened(layer)
            answer({"passes": list(passes)})
        elif request["do"] == "run":
            seconds = timed(passes[request["pass"]].run, request["repeats"])
            come_to_rest()
            answer({"seconds": seconds})
        else:
            Path(request["file"]).write_bytes(passes[request["pass"]].result())
            come_to_rest()
            answer({})
    return 0


def timed(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a run in seconds."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        kept = run()
        found.append(time.perf_counter() - begun)
        del kept  # giving memory back is not part of it
    return statistics.median(found)


def come_to_rest() -> None:
    """Wait until no thread of this process is busy."""
    for _ in range(int(LONGEST_S / LOOK_S)):
        before = time.process_time()
        time.sleep(LOOK_S)
        if time.process_time() - before < BUSY * LOOK_S:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
