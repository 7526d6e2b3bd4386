"""The bodies run in the oldest ONNX Runtime that can run them; tools/runtimes runs them in all releases between."""

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests.unit.ops.body_cases import all_cases
from tools.runtimes.releases import environment, run, write_cases

OLDEST = {(3, 11): "1.16.0", (3, 12): "1.17.0", (3, 13): "1.20.0"}
"""By Python: 1.16.0 is the oldest release without crashes, and newer Pythons have no wheel of it."""

RELEASE = OLDEST.get(sys.version_info[:2], onnxruntime.__version__)
OFFLINE = ("Failed to establish a new connection", "Network is unreachable", "name resolution")
EVERY = 7
"""A seventh of the cases; types and operators come in turns of eight."""


def test_bodies_run_in_the_oldest_runtime(tmp_path: Path) -> None:
    try:
        python = environment(RELEASE, tmp_path)
    except subprocess.CalledProcessError as error:
        if any(word in error.stderr for word in OFFLINE):  # .ci/run, which calls pip itself, is never offline
            pytest.skip("pip needs a network")
        raise
    outcome = run(python, tmp_path, write_cases(all_cases()[::EVERY], tmp_path), RELEASE)
    assert outcome.complaints == []
    assert outcome.counts["right"] > 150
