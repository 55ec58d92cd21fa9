"""Checkpoints of every format that was released restore for ever."""

from __future__ import annotations

import json
import shutil

import pytest
from golden_checkpoint import GOLDEN, describe, small, tables

import reverb_async as ra
from reverb_async.checkpoint.records import FORMAT

FORMATS = sorted(path.name for path in GOLDEN.glob("format-*") if path.is_dir())


def test_there_is_one_of_the_present_format():
    assert f"format-{FORMAT}" in FORMATS


@pytest.mark.parametrize("name", FORMATS)
async def test_a_checkpoint_restores_for_ever(name):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    found = json.loads(json.dumps(await describe(GOLDEN / name)))
    assert found["items"].keys() == expected["items"].keys()
    for part, arrays in expected["items"].items():
        assert found["items"][part] == arrays, part
    assert found == expected


@pytest.mark.parametrize("name", FORMATS)
async def test_and_can_be_gone_on_from(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    served = tables()
    async with ra.Server(served, port=None, checkpointer=ra.Checkpointer(tmp_path)) as server:
        await server.client().insert_batch(small(70, 5), {"replay": 1.0})
        sizes = [table.state.size for table in served]
    again = tables()
    async with ra.Server(again, port=None, checkpointer=ra.Checkpointer(tmp_path)):
        assert [table.state.size for table in again] == sizes
