"""What the wire's tests share."""

from __future__ import annotations

import pytest

from reverb_async.wire.http2.data_path import DATA_PATH_VARIABLE


@pytest.fixture(params=["fast", "stock"])
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with both DATA paths."""
    monkeypatch.setenv(DATA_PATH_VARIABLE, request.param)
    return str(request.param)
