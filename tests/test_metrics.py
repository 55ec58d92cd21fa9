from __future__ import annotations

import pytest

from reverb_async import metrics
from reverb_async.metrics import WINDOW_S, RateMeter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number."""
    now = [1000.5]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_a_rate_is_the_mean_over_the_window(clock: list[float]) -> None:
    meter = RateMeter()
    for _ in range(60):
        meter.count(7)
        clock[0] += 1
    assert meter.per_second() == pytest.approx(7, abs=0.8)


def test_a_young_meter_divides_by_its_age(clock: list[float]) -> None:
    meter = RateMeter()
    clock[0] += 2
    meter.count(10)
    assert meter.per_second() == 5


def test_what_is_long_past_is_forgotten(clock: list[float]) -> None:
    meter = RateMeter()
    meter.count(1000)
    clock[0] += WINDOW_S + 2
    assert meter.per_second() == 0
    meter.count(20)
    assert meter.per_second() == 2


def test_a_meter_that_counted_nothing_says_zero(clock: list[float]) -> None:
    assert RateMeter().per_second() == 0
