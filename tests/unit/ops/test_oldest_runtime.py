"""Bodies and kernels run in the oldest ONNX Runtime that can run them; tools/runtimes runs them in all between."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

from bnpass.runtime import get_library_path
from tests.unit.ops.body_cases import all_cases
from tools.runtimes.releases import OLDEST_FOR_KERNELS, environment, numbers, run, run_kernels, write_cases

BODIES = {(3, 11): "1.16.0", (3, 12): "1.17.0", (3, 13): "1.20.0"}
"""By Python: 1.16.0 is the oldest release without crashes, and newer Pythons have no wheel of it."""
KERNELS = {(3, 11): "1.18.0", (3, 12): "1.18.0", (3, 13): "1.20.0"}

PYTHON = sys.version_info[:2]
OFFLINE = ("Failed to establish a new connection", "Network is unreachable", "name resolution")
CASES = all_cases()[::7]
"""A seventh of the cases; types and operators come in turns of eight."""

Installed = Callable[[str], Path]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return the Python of an environment with a release, made once."""

    @cache
    def python(release: str) -> Path:
        try:
            return environment(release, tmp_path_factory.getbasetemp())
        except subprocess.CalledProcessError as error:
            if any(word in error.stderr for word in OFFLINE):  # .ci/run, which calls pip itself, is never offline
                pytest.skip("pip needs a network")
            raise

    return python


def test_bodies_run_in_the_oldest_runtime(installed: Installed, tmp_path: Path) -> None:
    release = BODIES.get(PYTHON, onnxruntime.__version__)
    outcome = run(installed(release), tmp_path, write_cases(CASES, tmp_path), release)
    assert outcome.complaints == []
    assert outcome.counts["right"] == 2 * len(CASES) > 150


def test_kernels_run_in_the_oldest_runtime_that_they_take(installed: Installed, tmp_path: Path) -> None:
    release = KERNELS.get(PYTHON, onnxruntime.__version__)
    named = write_cases(CASES, tmp_path, with_bodies=False)
    outcome = run_kernels(installed(release), tmp_path, named, release, get_library_path())
    assert outcome.complaints == []
    assert outcome.counts["right"] == 2 * len(CASES) > 150


def test_an_older_runtime_is_refused_by_name_and_its_process_goes_on(installed: Installed, tmp_path: Path) -> None:
    release = BODIES.get(PYTHON, onnxruntime.__version__)
    if numbers(release) >= OLDEST_FOR_KERNELS:
        pytest.skip("this Python has no release that is too old")
    named = write_cases(CASES[:20], tmp_path, with_bodies=False)
    outcome = run_kernels(installed(release), tmp_path, named, release, get_library_path())
    assert outcome.complaints == []
    assert outcome.counts["too old"] == 2 * 20
