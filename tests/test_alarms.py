"""Alarms: given once, changed, cleared."""

from __future__ import annotations

import logging

import pytest

from reverb_async.alarms import Alarms


def test_an_alarm_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms()
    with caplog.at_level(logging.INFO):
        alarms.give("memory", "full")
        (first,) = alarms
        alarms.give("memory", "still full")
        alarms.give("disk", "no room")
        assert [(alarm.name, alarm.message) for alarm in alarms] == [("memory", "still full"), ("disk", "no room")]
        assert next(iter(alarms)).since == first.since
        alarms.clear("memory")
        alarms.clear("memory")
    assert "memory" not in alarms
    assert "disk" in alarms
    assert [record.getMessage() for record in caplog.records] == [
        "alarm 'memory': full",
        "alarm 'disk': no room",
        "alarm 'memory' is over",
    ]
