"""A pytest plugin: the sessions of tests/kernel run in ONNX Runtime's CUDA provider."""

from functools import partial

import pytest

from bnpass.runtime import session


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.kernel.sessions as sessions

    monkeypatch.setattr(sessions, "session", partial(session, provider="cuda"))
