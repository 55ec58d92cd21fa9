from __future__ import annotations

import io
import json
import logging
from datetime import datetime
from itertools import pairwise

import pytest

from reverb_async.logs import FIRST_PAUSE_S, LONGEST_PAUSE_S, JsonFormatter, Repeats, set_up

logger = logging.getLogger("reverb_async.test_logs")


class TestRepeats:
    def test_a_kind_is_logged_after_10_20_and_40_seconds_and_then_every_minute(self, caplog):
        repeats, seen = Repeats(logger), []
        for second in range(300):
            before = len(caplog.messages)
            repeats.warning("it goes on", now=1000.0 + second)
            if len(caplog.messages) > before:
                seen.append(second)
        assert seen[:5] == [0, 9, 27, 63, 117]  # After 10, 20, 40, 60 s; a tenth early is in time.
        assert max(after - before for before, after in pairwise(seen)) <= LONGEST_PAUSE_S

    def test_a_line_says_how_many_were_left_out_unless_its_text_does(self, caplog):
        counted, silent = Repeats(logger), Repeats(logger)
        for repeats in (counted, silent):
            for moment in (0.0, 1.0, 2.0, 30.0):
                repeats.warning("refused", now=moment, count=repeats is counted)
        assert caplog.messages == [
            "refused",
            "refused (and 2 more like it since the last such line)",
            "refused",
            "refused",
        ]

    def test_lines_that_differ_in_numbers_only_are_alike_names_with_digits_are_not(self, caplog):
        repeats = Repeats(logger)
        for text in ("table 't1' needs 3 more", "table 't1' needs 2 more", "table 't2' needs 2 more", "it took 1.5 s"):
            repeats.warning(text, now=5.0)
        assert caplog.messages == ["table 't1' needs 3 more", "table 't2' needs 2 more", "it took 1.5 s"]

    def test_a_kind_that_was_quiet_begins_anew(self, caplog):
        repeats = Repeats(logger)
        repeats.warning("a", now=0.0)
        repeats.warning("a", now=0.0 + 4 * FIRST_PAUSE_S)
        repeats.warning("a", now=0.0 + 5 * FIRST_PAUSE_S)
        assert len(caplog.messages) == 3

    def test_the_number_of_kinds_is_bounded(self, caplog):
        repeats = Repeats(logger)
        for number in range(1000):
            repeats.warning("a", kind=number, now=0.0)
        assert len(repeats._kinds) <= 256


class TestJson:
    def test_a_line_has_what_was_said_of_it(self, caplog):
        with caplog.at_level(logging.WARNING):
            Repeats(logger).warning('a "word"\nand more', event="refused", peer="127.0.0.1:1")
        line = JsonFormatter().format(caplog.records[0])
        assert "\n" not in line
        said = json.loads(line)
        datetime.fromisoformat(said.pop("time"))
        assert said == {
            "level": "warning",
            "logger": "reverb_async.test_logs",
            "message": 'a "word"\nand more',
            "event": "refused",
            "peer": "127.0.0.1:1",
        }

    def test_errors_are_part_of_the_line(self):
        try:
            raise ValueError("why")
        except ValueError as error:
            record = logging.makeLogRecord({"msg": "it failed", "exc_info": (ValueError, error, error.__traceback__)})
        said = json.loads(JsonFormatter().format(record))
        assert said["error"].endswith("ValueError: why")


@pytest.mark.parametrize("form", ["text", "json"])
def test_ours_are_logged_from_the_chosen_level_on_those_of_libraries_from_warning(form, monkeypatch, capsys):
    root, ours = logging.getLogger(), logging.getLogger("reverb_async")
    monkeypatch.setattr(root, "handlers", [])
    level = ours.level
    try:
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        set_up("info", form)
        for name in ("reverb_async", "grpclib"):
            for level_name in ("debug", "info", "warning"):
                getattr(logging.getLogger(name), level_name)("%s said %s", name, level_name)
        lines = out.getvalue().splitlines()
        if form == "json":
            lines = [json.loads(line)["message"] for line in lines]
        said = [line[line.index(" said ") :] for line in lines]
        assert said == [" said info", " said warning", " said warning"]
    finally:
        ours.setLevel(level)
