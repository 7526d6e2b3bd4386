"""The replicas of a model as processes of MPI: what they are asked, and what they answer, in files.

Each is a :mod:`bnpass.runtime.rank`; arrays travel as ``.npz`` without pickle, and what happens is told in a file of
events for each of them, so that it is known how far they came, whatever becomes of them.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bnpass
from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime.launch import Ended, Launcher, run_ranks
from bnpass.verification.inputs import Draw
from bnpass.verification.prepared import write_draws
from bnpass.verification.runner import read_events, shortened
from bnpass.verification.shares import Arrays, WholeBatch

__all__ = ["Ran", "Ranks", "Share", "listed"]

_WORLD = "world"
_DEADLINE_S = 60.0
"""How long a replica waits for the others in one collective."""

Share = tuple[int, ...]
"""The number of samples of each replica."""


def listed(share: Share) -> str:
    """Return the numbers as a sentence has them: 4, 2 and 1."""
    return f"{', '.join(map(str, share[:-1]))} and {share[-1]}"


@dataclass(frozen=True)
class Ran:
    """What the replicas did.

    Attributes:
        outputs: The outputs of each, by draw and share; none if they failed.
        mpi: The MPI that they found each other in.
        failure: Why they failed; empty if they did not.
    """

    outputs: Mapping[tuple[int, Share], Sequence[Arrays]]
    mpi: str
    failure: str = ""


@dataclass(frozen=True)
class Ranks:
    """The replicas, one job of MPI.

    Attributes:
        model: The file that they run.
        count: How many they are.
        inputs: Names of the inputs of the model.
        groups: Groups that the model names; all replicas are in all of them.
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds they are ended.
        launcher: Who starts them.
    """

    model: Path
    count: int
    inputs: Sequence[str]
    groups: Sequence[str]
    provider: str
    timeout_s: float
    launcher: Launcher

    def run(self, batches: Mapping[int, WholeBatch], shares: Mapping[int, Sequence[Share]], folder: Path) -> Ran:
        """Run the replicas, each on its share of every batch.

        Args:
            batches: What each draw has for all replicas together.
            shares: The ways in which it is dealt out.
            folder: Where files may be written.

        Returns:
            What they did.

        Raises:
            MissingDependencyError: The processes find no MPI.
            UsageError: They cannot be started, or do not find each other.
        """
        folder.mkdir()
        steps = [(number, share) for number in batches for share in shares[number]]
        request = folder / "request.json"
        request.write_text(
            json.dumps(
                {
                    "model": str(self.model),
                    "provider": self.provider,
                    "size": self.count,
                    "groups": {name: list(range(self.count)) for name in self.groups if name != _WORLD},
                    "met_in": list(self.groups),
                    "deadline_s": min(_DEADLINE_S, self.timeout_s),
                    "timeout_s": self.timeout_s,
                    "inputs": self.inputs,
                    "runs": [self._files(folder, at, batches[n], share) for at, (n, share) in enumerate(steps)],
                    "folder": str(folder),
                }
            ),
            encoding="utf-8",
        )
        path = os.pathsep.join(filter(None, (str(Path(bnpass.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "bnpass.runtime.rank", str(request)]
        ended = run_ranks(
            self.launcher, self.count, command, timeout_s=self.timeout_s, environment={"PYTHONPATH": path}
        )
        return self._read(folder, steps, ended)

    def _files(self, folder: Path, step: int, batch: WholeBatch, share: Sequence[int]) -> list[str]:
        target = folder / f"step{step}"
        target.mkdir()
        parts = [[Draw("share", part)] for part in batch.parts(share)]
        return [str(files[0]) for files in write_draws(parts, target)]

    def _read(self, folder: Path, steps: Sequence[tuple[int, Share]], ended: Ended) -> Ran:
        events = [event for path in sorted(folder.glob("events-*.jsonl")) for event in read_events(path)]
        started = [event for event in events if event["event"] == "started"]
        self._raise_if_alone(events, started, ended)
        failed = [event for event in events if event["event"] == "failed"]
        mpi = started[0]["mpi"]
        if failed:
            said = "; ".join(dict.fromkeys(shortened(event["message"]) for event in failed))
            return Ran({}, mpi, f"The replicas failed{self._where(steps, failed[0]['run'])}: {said}")
        done = {(event["run"], event["rank"]): event for event in events if event["event"] == "done"}
        ends = sum(event["event"] == "end" for event in events)
        if ended.code != 0 or ends < self.count:
            at = max((run for run, _ in done), default=-1) + 1
            return Ran({}, mpi, f"The replicas {self._how(ended)}{self._where(steps, at)}")
        return Ran(
            {step: [_arrays(done[number, rank]) for rank in range(self.count)] for number, step in enumerate(steps)},
            mpi,
        )

    def _raise_if_alone(
        self, events: Sequence[Mapping[str, Any]], started: Sequence[Mapping[str, Any]], ended: Ended
    ) -> None:
        """Raise if the processes did not become replicas of each other."""
        launcher, count = self.launcher.path, self.count
        refused = next((event for event in events if event["event"] == "refused"), None)
        if refused is not None:
            is_missing = refused["kind"] == MissingDependencyError.__name__
            raise (MissingDependencyError if is_missing else UsageError)(refused["message"])
        if not started:
            raise UsageError(f"{count} replicas could not be started by {launcher}: the job {self._how(ended)}")
        sizes = {event["size"] for event in started}
        if sizes != {count}:
            raise UsageError(
                f"{launcher} started {count} processes that do not find each other: it does not belong to "
                f"{started[0]['mpi']}; name the right one in BNPASS_MPIEXEC"
            )

    def _how(self, ended: Ended) -> str:
        if ended.code is None:
            return f"did not finish within {self.timeout_s:g} s"
        return f"ended with exit code {ended.code}" + (f": {shortened(ended.output)}" if ended.output else "")

    @staticmethod
    def _where(steps: Sequence[tuple[int, Share]], run: int | None) -> str:
        if run is None or run >= len(steps):
            return ""
        return f" in draw {steps[run][0]}, with {listed(steps[run][1])} samples"


def _arrays(event: Mapping[str, Any]) -> Arrays:
    with np.load(event["file"], allow_pickle=False) as file:
        return {name: file[f"a{i}"] for i, name in enumerate(event["outputs"])}
