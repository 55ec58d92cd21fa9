"""What all tests share."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: neither slow examples nor slow generation of them.
# What is drawn is the same every time; soak tests ask for more of it.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("calm")

LONGEST_TEST_S = 120

_M_MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``; setting it keeps it from growing."""


def pytest_collection_finish() -> None:
    """Spare collections of garbage the thousands of objects that stay: tests make hundreds of collections."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # Thousands of servers come and go: what each reserves and never touches must not come from the heap, where
        # memory that was used before has to be cleared.
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@pytest.fixture(autouse=True)
def no_test_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that waits for something that never comes; soak tests watch themselves."""
    if not hasattr(signal, "SIGALRM") or request.node.get_closest_marker("soak"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"this test has run for {LONGEST_TEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_TEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
