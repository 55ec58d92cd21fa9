"""What is restored when tables are not those of the checkpoint."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from server_rig import NAME, fill, make_table, serving, values

import reverb_async as ra

UNBOUNDED = ra.rate_limiters.RateLimiter(1.0, 1, -float("inf"), float("inf"))


async def save(path, *tables):
    async with serving(path, *tables) as (client, _):
        for table in tables:
            await fill(client, 0, 100, table.name)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"max_size": 50}, "table 'replay' had max_size=10000, the server's has max_size=50"),
        ({"sampler": ra.selectors.Uniform()}, "sampler="),
        ({"remover": ra.selectors.Lifo()}, "remover="),
        ({"rate_limiter": ra.rate_limiters.MinSize(3)}, "rate_limiter="),
        ({"max_times_sampled": 4}, "max_times_sampled=0, the server's has max_times_sampled=4"),
        ({"max_bytes": 10**9}, "max_bytes=None, the server's has max_bytes=1000000000"),
        ({"signature": {"obs": ra.ArraySpec((4,), np.float32)}}, "signature=None"),
        (
            {"name": "other"},
            "table 'replay' with 100 items is only in the checkpoint; table 'other' is only on the serv",
        ),
    ],
)
async def test_strict_names_every_difference_and_leaves_the_checkpoint_alone(tmp_path, change, what):
    await save(tmp_path, make_table())
    with pytest.raises(ra.CheckpointError) as caught:
        async with serving(tmp_path, make_table(**change)):
            pass
    assert what in str(caught.value)
    assert "restore='config'" in str(caught.value)
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 100


async def test_all_definitions_are_the_same_again(tmp_path):
    tables = [
        make_table(),
        ra.Table.queue("queue", 1000),
        ra.Table.stack("stack", 1000),
        make_table(name="heap", sampler=ra.selectors.MaxHeap(), remover=ra.selectors.MinHeap(), rate_limiter=UNBOUNDED),
        make_table(
            name="ratio",
            rate_limiter=ra.rate_limiters.SampleToInsertRatio(2.0, 10, 1000.0),
            signature={
                "obs": ra.ArraySpec((4,), np.float32),
                "action": ra.ArraySpec((), np.int32),
                "done": ra.ArraySpec((), np.bool_),
            },
            max_bytes=10**6,
        ),
    ]
    await save(tmp_path, *tables)
    again = [table.replace(seed=77) for table in tables]
    async with serving(tmp_path, *again):
        assert [table.state.size for table in again] == [100] * 5


async def test_config_keeps_what_fits_and_says_what_does_not(tmp_path, caplog):
    await save(tmp_path, make_table(), make_table(name="gone"))
    table, new = make_table(max_size=30), make_table(name="new")
    async with serving(tmp_path, table, new, restore="config") as (client, _):
        assert (table.state.size, new.state.size) == (30, 0)
        batch = await client.sample_batch(NAME, 100)
        assert batch.data["action"].min() >= 70, "the remover is Fifo"
        for name, expected in values(batch.data["action"]).items():
            np.testing.assert_array_equal(batch.data[name], expected)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("had max_size=10000" in line for line in said)
    assert any("70 items of table 'replay' had no room" in line for line in said)
    assert any("'gone' with 100 items is only in the checkpoint" in line for line in said)
    assert any("'new' is only on the server" in line for line in said)
    table, new = make_table(max_size=30), make_table(name="new")
    async with serving(tmp_path, table, new):
        assert table.state.size == 30


async def test_checkpoint_takes_the_saved_definitions(tmp_path, caplog):
    await save(tmp_path, make_table(max_size=120, max_times_sampled=5), make_table(name="more"))
    table = make_table(max_size=7)
    async with serving(tmp_path, table, restore="checkpoint") as (client, _):
        assert table.state.size == 100
        info = await client.server_info()
        assert (info[NAME].max_size, info[NAME].max_times_sampled) == (120, 5)
        assert info["more"].current_size == 100
        await fill(client, 100, 50)
        assert table.state.size == 120
        await fill(client, 100, 50, "more")
        assert len((await client.sample_batch("more", 10)).info.key) == 10
    assert any("max_size=120" in record.getMessage() for record in caplog.records)


async def test_tables_of_a_redefined_name_are_told_to_both_kinds_of_clients(tmp_path):
    signature = {"obs": ra.ArraySpec((4,), np.float32)}
    async with serving(tmp_path, make_table(signature=signature)) as (client, _):
        await client.insert({"obs": np.ones(4, np.float32)}, {NAME: 1.0})
    server = ra.Server([make_table()], checkpointer=ra.Checkpointer(tmp_path, restore="checkpoint"))
    async with server, ra.Client(f"reverb://{server.address}") as deepmind:
        info = (await deepmind.server_info())[NAME]
        assert info.signature is not None
        sample = await deepmind.sample_one(NAME)
        assert sample.data["obs"].tolist() == [1, 1, 1, 1] or sample.data["obs"].tolist() == [[1, 1, 1, 1]]
        path = await deepmind.checkpoint()
        assert path == str(tmp_path / f"ckpt-{2:020d}")


async def test_native_clients_ask_over_the_wire(tmp_path):
    server = ra.Server([make_table()], checkpointer=ra.Checkpointer(tmp_path))
    async with server, ra.Client(server.address) as client:
        await fill(client, 0, 10)
        assert await client.checkpoint(timeout=60) == str(tmp_path / f"ckpt-{1:020d}")
