"""Logs of every format that was released restore for ever."""

from __future__ import annotations

import json
import shutil

import pytest
from golden_checkpoint import GOLDEN
from golden_log import describe

from reverb_async.checkpoint.records import FORMAT

FORMATS = sorted(path.name for path in GOLDEN.glob("log-format-*") if path.is_dir())


def test_there_is_one_of_the_present_format():
    assert f"log-format-{FORMAT}" in FORMATS


@pytest.mark.parametrize("name", FORMATS)
async def test_a_log_restores_for_ever(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert json.loads(json.dumps(await describe(tmp_path))) == expected
