"""The trajectory writer against a server in this process."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any, NamedTuple

import numpy as np
import pytest
from insert_rig import Rig

from reverb_async.core.ragged import Ragged
from reverb_async.core.rate_limiters import MinSize
from reverb_async.core.selectors import Prioritized
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
    ExpiredReference,
    InvalidArgument,
    ReplayError,
    SignatureMismatch,
    TableNotFound,
    Unavailable,
)
from reverb_async.table import Table
from reverb_async.testing import until


class Step(NamedTuple):
    obs: Any
    reward: Any


def queue(name: str = "t", size: int = 100_000, **options: Any) -> Table:
    return Table.queue(name, size, **options)


@pytest.fixture
async def rig():
    async with Rig(queue(), Table("prioritized", max_size=100, sampler=Prioritized(1.0))) as rig:
        yield rig


def step(at: int) -> dict[str, Any]:
    return {"obs": np.full(3, at, np.float32), "action": np.int32(at), "reward": float(at)}


# -- what goes in comes out -------------------------------------------------------------------------------------------


async def test_slices_keep_the_time_axis_and_an_int_drops_it(rig: Rig) -> None:
    async with rig.writer() as writer:
        for at in range(5):
            writer.append(step(at))
        history = writer.history
        await writer.create_item(
            "t",
            1.0,
            trajectory={"obs": history["obs"][-3:], "last": history["action"][-1], "r": history["reward"][1:2]},
        )
    (data,) = await rig.data("t", 1)
    assert data["obs"].tolist() == [[2.0] * 3, [3.0] * 3, [4.0] * 3]
    assert data["obs"].dtype == np.float32
    assert data["last"] == 4
    assert data["last"].shape == ()
    assert data["r"].tolist() == [1.0]


async def test_two_cuts_of_one_column_in_one_item(rig: Rig) -> None:
    async with rig.writer(5) as writer:
        for at in range(20):
            writer.append(step(at))
            if at >= 4:
                obs = writer.history["obs"]
                await writer.create_item("t", trajectory={"now": obs[-4:], "before": obs[-5:-1]})
    for at, data in enumerate(await rig.data("t", 16)):
        assert data["before"][:, 0].tolist() == [at, at + 1, at + 2, at + 3]
        assert data["now"][:, 0].tolist() == [at + 1, at + 2, at + 3, at + 4]
    # Frame stacking sends each frame once.
    frames = 20 * 12
    assert rig.sent_bytes() < frames + 16 * (2 * 8 + 2 * 16 + 16) + 64


async def test_lists_permute_and_repeat(rig: Rig) -> None:
    async with rig.writer(10) as writer:
        for at in range(10):
            writer.append(step(at))
        action = writer.history["action"]
        for index in ([0, -1], [3, 1, 2], [5, 5, 6], np.array([9, 0]), slice(None, None, -3)):
            await writer.create_item("t", trajectory={"a": action[index]})
    chosen = [data["a"].tolist() for data in await rig.data("t", 5)]
    assert chosen == [[0, 9], [3, 1, 2], [5, 5, 6], [9, 0], [9, 6, 3, 0]]


async def test_values_of_its_own_are_stored_with_the_item(rig: Rig) -> None:
    async with rig.writer() as writer:
        for at in range(6):
            writer.append(step(at))
            trajectory = {"a": writer.history["action"][-1:], "g": np.float32(at / 2), "n": at, "text": "x" * at}
            await writer.create_item("t", trajectory=trajectory)
        await writer.create_item("t", trajectory={"only": np.arange(3)})
    *items, last = await rig.data("t", 7)
    assert [data["g"] for data in items] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [data["n"] for data in items] == list(range(6))
    assert [data["text"] for data in items] == ["x" * at for at in range(6)]
    assert items[0]["g"].dtype == np.float32
    assert last["only"].tolist() == [0, 1, 2]


async def test_values_of_its_own_may_change_shape_and_dtype_between_items(rig: Rig) -> None:
    values = [np.ones(2), np.ones(3), np.ones((2, 2)), np.ones(2, np.int8), np.ones(5)]
    async with rig.writer() as writer:
        for value in values:
            await writer.create_item("t", trajectory={"x": value})
    for value, data in zip(values, await rig.data("t", 5), strict=True):
        assert data["x"].dtype == value.dtype
        np.testing.assert_array_equal(data["x"], value)


async def test_nests_come_back_as_they_were(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(Step(np.zeros(2), (1.0, 2)))
        history = writer.history
        assert isinstance(history, Step)
        await writer.create_item("t", trajectory=Step(history.obs[0], [history.reward[0][:], history.reward[1][-1]]))
    (data,) = await rig.data("t", 1)
    assert isinstance(data, Step)
    assert isinstance(data.reward, list)
    assert data.reward[1] == 2


async def test_the_user_may_reuse_arrays_after_append_and_create_item(rig: Rig) -> None:
    async with rig.writer(10) as writer:
        frame, value = np.zeros(4), np.zeros(2)
        for at in range(8):
            frame[:] = value[:] = at
            writer.append({"f": frame})
            await writer.create_item("t", trajectory={"f": writer.history["f"][:], "v": value})
            frame[:] = value[:] = -1
    for at, data in enumerate(await rig.data("t", 8)):
        assert data["f"][:, 0].tolist() == list(range(at + 1))
        assert data["v"].tolist() == [at, at]


async def test_episodes_of_different_lengths(rig: Rig) -> None:
    async with rig.writer(300) as writer:
        for length in (1, 200, 3, 77):
            for at in range(length):
                writer.append(step(at))
            history = writer.history
            await writer.create_item("t", trajectory={"obs": history["obs"][:], "action": history["action"][:]})
            await writer.end_episode()
    assert [len(data["obs"]) for data in await rig.data("t", 4)] == [1, 200, 3, 77]


async def test_steps_of_different_shapes_where_the_signature_leaves_it_open() -> None:
    signature = {"tokens": ArraySpec((None, None), np.int32), "done": ArraySpec((), np.bool_)}
    async with Rig(queue(signature=signature)) as rig:
        async with rig.writer(4) as writer:
            for at in range(12):
                writer.append({"tokens": np.arange(at, dtype=np.int32), "done": False})
                tokens = writer.history["tokens"]
                await writer.create_item("t", trajectory={"tokens": tokens[-1:], "done": writer.history["done"][-1]})
        assert [data["tokens"].shape[-1] for data in await rig.data("t", 12)] == list(range(12))


async def test_a_column_becomes_variable_once_the_signature_is_known() -> None:
    signature = {"x": ArraySpec((None,), np.float32)}
    async with Rig(queue(signature=signature)) as rig:
        writer = rig.writer(4)
        writer.append({"x": np.zeros(2, np.float32)})
        with pytest.raises(InvalidArgument, match="async with"):
            writer.append({"x": np.zeros(3, np.float32)})
        await writer.create_item("t", trajectory={"x": writer.history["x"][-1]})
        writer.append({"x": np.zeros(3, np.float32)})
        await writer.create_item("t", trajectory={"x": writer.history["x"][-1]})
        await writer.create_item("t", trajectory={"x": writer.history["x"][0]})
        await writer.close()
        assert [len(data["x"]) for data in await rig.data("t", 3)] == [2, 3, 2]


async def test_text_and_bytes_per_step(rig: Rig) -> None:
    async with rig.writer(3) as writer:
        for at in range(5):
            writer.append({"text": "é" * at, "raw": bytes(at), "n": at})
        history = writer.history
        assert history["text"][-2:].numpy() == ["é" * 3, "é" * 4]
        await writer.create_item(
            "t", trajectory={"text": history["text"][-3:], "raw": history["raw"][-1], "n": history["n"][-3:]}
        )
    (data,) = await rig.data("t", 1)
    assert list(data["text"]) == ["éé", "ééé", "éééé"]
    assert data["raw"] == bytes(4)


async def test_big_steps_arrive(rig: Rig) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 1 << 21), np.uint8)
    async with rig.writer(2) as writer:
        for at, frame in enumerate(frames):
            writer.append({"f": frame})
            if at:
                await writer.create_item("t", trajectory={"f": writer.history["f"][-2:]})
    for at, data in enumerate(await rig.data("t", 5)):
        np.testing.assert_array_equal(data["f"], frames[at : at + 2])


async def test_several_tables_share_the_steps() -> None:
    async with Rig(queue("a"), queue("b")) as rig:
        async with rig.writer(4) as writer:
            for at in range(40):
                writer.append({"f": np.full(1000, at)})
                if at >= 3:
                    for name in "ab":
                        await writer.create_item(name, trajectory={"f": writer.history["f"][-4:]})
        for name in "ab":
            assert [data["f"][0, 0] for data in await rig.data(name, 37)] == list(range(37))
        assert rig.sent_bytes() < 40 * 8000 * 1.05


async def test_items_of_a_table_keep_their_order_whatever_they_look_like(rig: Rig) -> None:
    async with rig.writer(4) as writer:
        for at in range(50):
            writer.append(step(at))
            history = writer.history
            await writer.create_item("prioritized", 1.0, trajectory={"a": history["action"][-1]})
            if at % 3:
                await writer.create_item("t", trajectory={"a": history["action"][-1]})
            else:
                await writer.create_item("t", trajectory={"a": history["action"][-1], "o": history["obs"][-1]})
    assert [int(data["a"]) for data in await rig.data("t", 50)] == list(range(50))


# -- what is sent -----------------------------------------------------------------------------------------------------


async def test_without_items_nothing_is_sent(rig: Rig) -> None:
    async with rig.writer() as writer:
        for at in range(100):
            writer.append(step(at))
        await writer.end_episode()
        writer.append(step(0))
    assert rig.transport.opened == 0


async def test_what_no_item_shows_is_not_sent(rig: Rig) -> None:
    """R2D2: a state of 4 KB per step, of which an item of 80 steps shows the first one."""
    steps, length, shift = 4000, 80, 40
    items = 0
    async with rig.writer(length) as writer:
        for at in range(steps):
            writer.append({"obs": np.full(16, at % 256, np.uint8), "state": np.full(1024, at, np.float32)})
            if at + 1 >= length and (at + 1 - length) % shift == 0:
                history = writer.history
                await writer.create_item(
                    "t", trajectory={"obs": history["obs"][-length:], "state": history["state"][-length]}
                )
                items += 1
    shown = steps * 16 + items * 4096
    assert rig.sent_bytes() < 1.05 * shown
    for number, data in enumerate(await rig.data("t", items)):
        assert data["state"][0] == number * shift
        assert data["obs"][:, 0].tolist() == [(number * shift + at) % 256 for at in range(length)]


async def test_steps_are_sent_again_when_items_cut_their_columns_apart(rig: Rig) -> None:
    async with rig.writer(8) as writer:
        for at in range(8):
            writer.append(step(at))
        history = writer.history
        for trajectory in (
            {"o": history["obs"][:], "a": history["action"][:]},
            {"o": history["obs"][:], "a": history["action"][-1]},
            {"a": history["action"][2:4]},
            {"o": history["obs"][:], "a": history["action"][:], "r": history["reward"][:]},
        ):
            await writer.create_item("t", trajectory=trajectory)
    first, second, third, fourth = await rig.data("t", 4)
    for data in (first, second, fourth):
        assert data["o"][:, 0].tolist() == list(range(8))
    assert second["a"] == 7
    assert third["a"].tolist() == [2, 3]
    assert fourth["a"].tolist() == list(range(8))
    assert fourth["r"].tolist() == list(range(8))


async def test_the_server_keeps_no_more_steps_than_can_be_named(rig: Rig) -> None:
    async with rig.writer(5, max_in_flight_items=8) as writer:
        for at in range(2000):
            writer.append(step(at))
            await writer.create_item("prioritized", 1.0, trajectory={"o": writer.history["obs"][-2:]})
            if at % 100 == 99:
                await writer.flush()
        pinned = rig.service.replay.storage.usage().pinned_rows
        assert pinned <= 5 + 8
        await writer.end_episode()
        for _ in range(10):
            await asyncio.sleep(0)
        assert rig.service.replay.storage.usage().pinned_rows == 0


async def test_a_column_shown_once_in_a_very_long_while_stays_nameable(rig: Rig) -> None:
    """Servers bound how far apart a group's steps may be; numbers on the stream leave out what nobody can name."""
    async with rig.writer(2) as writer:
        big = np.zeros(1 << 16, np.uint8)
        for at in range(60_000):
            writer.append({"big": big, "n": at} if at % 20_000 == 19_999 else {"n": at})
            if at % 20_000 == 19_999:
                await writer.create_item("t", trajectory={"b": writer.history["big"][-1], "n": writer.history["n"][-1]})
                await writer.flush()
    assert [data["n"] for data in await rig.data("t", 3)] == [19_999, 39_999, 59_999]


# -- appending --------------------------------------------------------------------------------------------------------


async def test_a_bad_column_changes_nothing_and_the_corrected_step_succeeds(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(step(0))
        with pytest.raises(InvalidArgument, match=r"\('reward',\) is float64.*got float32 \[2\]"):
            writer.append({**step(1), "reward": np.zeros(2, np.float32)})
        with pytest.raises(InvalidArgument, match=r"\('obs',\) is float32 \[3\], got float32 \[4\]"):
            writer.append({**step(1), "obs": np.zeros(4, np.float32)})
        assert writer.episode_steps == 1
        assert len(writer.history["obs"]) == 1
        writer.append(step(1))
        await writer.create_item("t", trajectory={"o": writer.history["obs"][:], "r": writer.history["reward"][:]})
    (data,) = await rig.data("t", 1)
    assert data["o"][:, 0].tolist() == [0, 1]
    assert data["r"].tolist() == [0, 1]


async def test_a_new_column_beside_a_bad_one_is_not_kept(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append({"a": 1})
        with pytest.raises(InvalidArgument):
            writer.append({"new": 1.0, "a": "text"})
        assert list(writer.history) == ["a"]
        writer.append({"a": 2, "new": np.zeros(3)})
        assert writer.history["new"][-1].shape == (3,)


async def test_columns_come_and_go_and_keep_their_lengths(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append({"x": 1, "z": 2})
        writer.append({"z": 3, "y": 4})
        writer.append({"w": 5, "y": None})
        history = writer.history
        assert {name: len(column) for name, column in history.items()} == dict.fromkeys("wxyz", 3)
        with pytest.raises(InvalidArgument, match=r"\('x',\) has no value at step 1"):
            history["x"][:]
        await writer.create_item("t", trajectory={"x": history["x"][0], "z": history["z"][:2], "w": history["w"][-1:]})
    (data,) = await rig.data("t", 1)
    assert (data["x"], data["z"].tolist(), data["w"].tolist()) == (1, [2, 3], [5])


async def test_a_step_can_be_appended_in_parts(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append({"x": 1, "z": 2}, partial_step=True)
        writer.append({"y": 3}, partial_step=True)
        assert writer.episode_steps == 0
        assert len(writer.history["x"]) == 1
        with pytest.raises(InvalidArgument, match=r"\('x',\) has already been set"):
            writer.append({"x": 5, "w": 1})
        await writer.create_item("t", trajectory={"x": writer.history["x"][-1]})
        writer.append({"w": 4})
        assert writer.episode_steps == 1
        writer.append({"x": 10, "y": 20, "z": 30, "w": 40})
        assert {name: column[:].numpy().tolist() for name, column in writer.history.items()} == {
            "w": [4, 40],
            "x": [1, 10],
            "y": [3, 20],
            "z": [2, 30],
        }


async def test_append_sequence_equals_repeated_append(rig: Rig) -> None:
    sequence = {"o": np.arange(12).reshape(6, 2), "r": np.arange(6.0)}
    async with rig.writer(10) as one, rig.writer(10) as other:
        one.append_sequence(sequence)
        for at in range(6):
            other.append({"o": sequence["o"][at], "r": sequence["r"][at]})
        for writer in (one, other):
            assert writer.episode_steps == 6
            await writer.create_item("t", trajectory={name: column[:] for name, column in writer.history.items()})
            await writer.flush()
    first, second = await rig.data("t", 2)
    np.testing.assert_array_equal(first["o"], second["o"])
    np.testing.assert_array_equal(first["r"], second["r"])
    assert first["r"].dtype == second["r"].dtype


async def test_append_sequence_stores_all_steps_or_none() -> None:
    async with Rig(queue(signature={"x": ArraySpec((None,), np.float64)})) as rig, rig.writer() as writer:
        with pytest.raises(InvalidArgument, match="same number of steps"):
            writer.append_sequence({"a": np.zeros(2), "b": np.zeros(3)})
        with pytest.raises(InvalidArgument, match="no leading axis"):
            writer.append_sequence({"a": np.zeros(2), "b": 1})
        writer.append({"a": np.zeros(2, np.int8), "x": np.zeros(1)})
        with pytest.raises(InvalidArgument, match=r"got int8 \[3\]"):
            writer.append_sequence(
                {"a": Ragged.from_list([np.zeros(2, np.int8), np.zeros(3, np.int8)]), "x": np.zeros((2, 1))}
            )
        assert writer.episode_steps == 1
        writer.append_sequence({"a": np.zeros((2, 2), np.int8), "x": Ragged.from_list([np.zeros(4), np.zeros(3)])})
        assert writer.episode_steps == 3
        assert writer.history["x"][-1].numpy().shape == (3,)


# -- references -------------------------------------------------------------------------------------------------------


async def test_a_reference_expires_with_num_keep_alive_refs(rig: Rig) -> None:
    async with rig.writer(3) as writer:
        for at in range(3):
            writer.append(step(at))
        kept, expiring = writer.history["obs"][1:], writer.history["obs"][:]
        writer.append(step(3))
        await writer.create_item("t", trajectory={"o": kept})
        with pytest.raises(ExpiredReference, match=r"num_keep_alive_refs >= 4, is 3"):
            await writer.create_item("t", trajectory={"o": expiring})
        with pytest.raises(ExpiredReference):
            expiring.numpy()
        with pytest.raises(ExpiredReference, match=r"num_keep_alive_refs >= 4, is 3"):
            writer.history["obs"][:]


async def test_configure_keeps_more_of_one_column_seen_or_not(rig: Rig) -> None:
    async with rig.writer(2) as writer:
        writer.configure("long", num_keep_alive_refs=6)
        for at in range(6):
            writer.append({"long": at, "short": at})
        assert writer.history["long"][:].numpy().tolist() == list(range(6))
        with pytest.raises(ExpiredReference):
            writer.history["short"][-3]
        writer.configure(("short",), num_keep_alive_refs=4, max_chunk_length=4)
        with pytest.raises(ExpiredReference):
            writer.history["short"][-3]
        for at in range(6, 8):
            writer.append({"long": at, "short": at})
        assert writer.history["short"][-4:].numpy().tolist() == [4, 5, 6, 7]
        await writer.create_item("t", trajectory={"l": writer.history["long"][-6:], "s": writer.history["short"][-4:]})


async def test_configure_to_keep_less_expires_what_was_selected_before(rig: Rig) -> None:
    async with rig.writer(5) as writer:
        for at in range(5):
            writer.append({"x": at})
        selected = writer.history["x"][:]
        writer.configure("x", num_keep_alive_refs=2)
        with pytest.raises(ExpiredReference, match="num_keep_alive_refs"):
            await writer.create_item("t", trajectory={"x": selected})


@pytest.mark.parametrize(
    "options",
    [
        {"num_keep_alive_refs": 4, "max_chunk_length": 5},
        {"num_keep_alive_refs": 1, "max_chunk_length": 0},
        {"num_keep_alive_refs": 0},
        {"num_keep_alive_refs": True},
    ],
)
async def test_configure_refuses_numbers_that_cannot_work(rig: Rig, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        rig.writer().configure("x", **options)


@pytest.mark.parametrize("options", [{"keep": 0}, {"max_in_flight_items": 0}, {"chunk_length": 6}, {"chunk_length": 0}])
async def test_a_writer_refuses_numbers_that_cannot_work(rig: Rig, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        rig.writer(**options)


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_trajectories_that_are_none_are_refused_with_a_way_out(rig: Rig) -> None:
    async with rig.writer() as writer, rig.writer() as other:
        writer.append(step(0))
        other.append(step(0))
        history = writer.history
        for trajectory, message in (
            ({}, "empty"),
            ({"o": history["obs"][:0]}, "empty"),
            ({"o": history["obs"]}, "select steps"),
            ({"o": history["obs"][:], "x": None}, r"\('x',\) is None"),
            ({"o": other.history["obs"][:]}, "another writer"),
            ({"o": list(range(17))}, "np.asarray"),
            ({"o": object()}, "not an array"),
            ({"o": np.array([None])}, "dtype"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                await writer.create_item("t", trajectory=trajectory)
        for priority in (float("nan"), float("inf"), "1", [1, 2]):
            with pytest.raises(InvalidArgument, match="priority"):
                await writer.create_item("t", priority, trajectory={"o": history["obs"][:]})
        with pytest.raises(InvalidArgument, match="Prioritized"):
            await writer.create_item("prioritized", -1.0, trajectory={"o": history["obs"][:]})
        await writer.create_item("t", -1.0, trajectory={"o": history["obs"][:]})
        await writer.flush()
    assert rig.tables[0].info.current_size == 1


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (lambda h: {"obs": h["obs"][-2:]}, "missing"),
        (lambda h: {"obs": h["obs"][-2:], "action": h["action"][-1], "more": 1}, "unexpected"),
        (lambda h: {"obs": h["obs"][-2:], "action": h["reward"][-1]}, "float64"),
        (lambda h: {"obs": h["obs"][-1], "action": h["action"][-1]}, "obs"),
        (lambda h: {"obs": h["obs"][-3:], "action": h["action"][-1]}, "3 steps, the signature wants 2"),
        (lambda h: {"obs": np.zeros((2, 4), np.float32), "action": h["action"][-1]}, "obs"),
    ],
)
async def test_items_that_do_not_fit_the_signature_are_refused_on_the_client(trajectory: Any, message: str) -> None:
    signature = {"obs": ArraySpec((2, 3), np.float32), "action": ArraySpec((), np.int32)}
    async with Rig(queue(signature=signature)) as rig, rig.writer() as writer:
        for at in range(3):
            writer.append(step(at))
        history = writer.history
        with pytest.raises(SignatureMismatch, match=message):
            await writer.create_item("t", trajectory=trajectory(history))
        await writer.create_item("t", trajectory={"action": history["action"][-1], "obs": history["obs"][-2:]})
        await writer.flush()


async def test_tables_with_and_without_a_signature_get_columns_that_fit_them() -> None:
    fixed, free = ({"x": ArraySpec(shape, np.float64), "v": ArraySpec(shape, np.float64)} for shape in ((2,), (None,)))
    async with Rig(queue(), queue("fixed", signature=fixed), queue("free", signature=free)) as rig:
        async with rig.writer() as writer:
            for length in (2, 3):
                writer.append({"x": np.zeros(length)})
                for table in ("t", "free", "fixed")[: 5 - length]:
                    await writer.create_item(table, trajectory={"x": writer.history["x"][-1], "v": np.zeros(length)})
            with pytest.raises(SignatureMismatch, match="another table's"):
                await writer.create_item("fixed", trajectory={"x": writer.history["x"][-1], "v": np.zeros(2)})
            await writer.create_item("t", trajectory={"v": np.zeros(2)})
        assert [len(data["x"]) for data in await rig.data("free", 2)] == [2, 3]
        assert rig.tables[1].info.current_size == 1


async def test_python_numbers_take_the_dtype_of_the_signature() -> None:
    signature = {"r": ArraySpec((None,), np.float32), "g": ArraySpec((), np.float32)}
    async with Rig(queue(signature=signature)) as rig:
        async with rig.writer() as writer:
            writer.append({"r": 1.5})
            writer.append({"r": 2})
            await writer.create_item("t", trajectory={"r": writer.history["r"][:], "g": 3})
        (data,) = await rig.data("t", 1)
        assert data["r"].dtype == data["g"].dtype == np.float32


async def test_an_unknown_table_is_named_with_those_there_are(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(step(0))
        with pytest.raises(TableNotFound, match=r"'nope'.*'prioritized', 't'"):
            await writer.create_item("nope", trajectory={"o": writer.history["obs"][:]})
        await writer.create_item("t", trajectory={"o": writer.history["obs"][:]})


async def test_a_refused_item_ends_the_writer_but_close_is_fine(rig: Rig) -> None:
    writer = rig.writer(validate_items=False)
    writer.append(step(0))
    await writer.create_item("nope", trajectory={"o": writer.history["obs"][:]})
    with pytest.raises(TableNotFound):
        await writer.flush()
    for _ in range(2):
        with pytest.raises(TableNotFound):
            writer.append(step(1))
        with pytest.raises(TableNotFound):
            await writer.create_item("t", trajectory={"x": 1})
        with pytest.raises(TableNotFound):
            await writer.end_episode()
    await writer.close()
    await writer.close()


async def test_leaving_the_block_tells_of_a_refused_item(rig: Rig) -> None:
    async def write() -> None:
        async with rig.writer(validate_items=False) as writer:
            writer.append(step(0))
            await writer.create_item("nope", trajectory={"o": writer.history["obs"][:]})

    with pytest.raises(TableNotFound):
        await write()


# -- episodes ---------------------------------------------------------------------------------------------------------


async def test_end_episode_clears_history_and_counts_episodes(rig: Rig) -> None:
    async with rig.writer() as writer:
        for episode in range(3):
            for at in range(4):
                writer.append(step(at))
            old = writer.history["obs"][:]
            await writer.create_item("prioritized", 1.0, trajectory={"o": old})
            await writer.create_item("prioritized", 1.0, trajectory={"o": writer.history["obs"][-1]})
            await writer.end_episode()
            assert writer.episode_steps == 0
            assert len(writer.history["obs"]) == 0
            with pytest.raises(IndexError):
                writer.history["obs"][0]
            with pytest.raises(ExpiredReference, match="end_episode"):
                await writer.create_item("t", trajectory={"o": old})
            assert rig.tables[1].info.num_episodes == episode + 1


async def test_an_item_across_episodes_counts_both(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(step(0))
        await writer.end_episode(clear_buffers=False)
        assert writer.episode_steps == 0
        writer.append(step(1))
        assert writer.episode_steps == 1
        await writer.create_item("prioritized", 1.0, trajectory={"o": writer.history["obs"][:]})
        await writer.flush()
        assert rig.tables[1].info.num_episodes == 2
        await writer.end_episode(clear_buffers=False)
        for at in range(20):
            writer.append(step(at))
        await writer.create_item("prioritized", 1.0, trajectory={"o": writer.history["obs"][-1]})
        await writer.flush()
        assert rig.tables[1].info.num_episodes == 3


async def test_an_episode_that_cannot_be_flushed_in_time_goes_on() -> None:
    async with Rig(queue(size=1)) as rig:
        writer = rig.writer()
        for at in range(2):
            writer.append(step(at))
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
        with pytest.raises(DeadlineExceeded):
            await writer.end_episode(timeout=0.01)
        with pytest.raises(DeadlineExceeded):
            await writer.end_episode(timeout=0)
        assert writer.episode_steps == 2
        assert len(writer.history["obs"]) == 2
        assert len(await rig.data("t", 2)) == 2
        await writer.end_episode(timeout=1)
        assert writer.episode_steps == 0
        await writer.close()


# -- waiting ----------------------------------------------------------------------------------------------------------


async def test_an_item_is_visible_soon_without_a_flush(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(step(0))
        for _ in range(2):  # the first one opens the stream
            before = rig.tables[0].info.current_size
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
            for _ in range(15):
                await asyncio.sleep(0)
            assert rig.tables[0].info.current_size == before + 1


async def test_create_item_does_not_suspend_while_there_is_a_place(rig: Rig) -> None:
    async with rig.writer(max_in_flight_items=10) as writer:
        writer.append(step(0))
        for _ in range(10):
            call = writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
            with pytest.raises(StopIteration):
                call.send(None)


async def test_create_item_waits_for_a_place() -> None:
    async with Rig(queue(size=3)) as rig, rig.writer(max_in_flight_items=4) as writer:
        writer.append(step(0))
        trajectory = {"o": writer.history["obs"][-1]}
        for _ in range(7):
            await writer.create_item("t", trajectory=trajectory)
        for timeout in (0, 0.01):
            with pytest.raises(DeadlineExceeded, match="max_in_flight_items=4"):
                await writer.create_item("t", trajectory=trajectory, timeout=timeout)
        waiting = asyncio.create_task(writer.create_item("t", trajectory=trajectory))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert len(await rig.data("t", 1)) == 1
        await asyncio.wait_for(waiting, 1)
        assert len(await rig.data("t", 7)) == 7


async def test_flush_waits_for_all_but_some() -> None:
    async with Rig(queue(size=2)) as rig, rig.writer() as writer:
        writer.append(step(0))
        for _ in range(3):
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
        await writer.flush(1)
        with pytest.raises(DeadlineExceeded, match="1 items"):
            await writer.flush(timeout=0.01)
        for number in (-1, 1.5, None):
            with pytest.raises(InvalidArgument):
                await writer.flush(number)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="timeout"):
            await writer.flush(timeout=-1)
        await rig.data("t", 3)


async def test_a_cancelled_wait_leaves_the_writer_usable() -> None:
    async with Rig(queue(size=1)) as rig, rig.writer(max_in_flight_items=1) as writer:
        writer.append(step(0))
        trajectory = {"o": writer.history["obs"][-1]}
        for _ in range(2):
            await writer.create_item("t", trajectory=trajectory)
        for call in (writer.create_item("t", trajectory=trajectory), writer.flush(), writer.end_episode()):
            task = asyncio.create_task(call)
            await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(await rig.data("t", 2)) == 2
        await writer.flush()
        assert rig.tables[0].info.current_size == 0


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["unsent", "sent", "unheard"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
async def test_each_item_enters_once_however_the_connection_breaks(rig: Rig, where: str, number: int) -> None:
    rig.transport.cuts.extend([(where, number)] * 5)
    rng = np.random.default_rng(number)
    async with rig.writer(8, max_in_flight_items=6) as writer:
        for at in range(200):
            writer.append(step(at))
            history, length = writer.history, int(rng.integers(1, min(at + 2, 8)))
            await writer.create_item(
                "t", trajectory={"o": history["obs"][-length:], "a": history["action"][-1], "n": at, "l": length}
            )
            if at % 50 == 49:
                await writer.end_episode(clear_buffers=False)
    samples = await rig.read("t", 200)
    assert [sample.data["n"] for sample in samples] == list(range(200))
    assert len({sample.info.key for sample in samples}) == 200
    for at, sample in enumerate(samples):
        assert sample.data["a"] == at
        assert sample.data["o"][:, 0].tolist() == list(range(at + 1 - sample.data["l"], at + 1))
    assert rig.transport.opened == 6
    assert rig.tables[0].info.current_size == 0


async def test_random_cuts_with_changing_layouts_lose_and_double_nothing(rig: Rig) -> None:
    rng = np.random.default_rng(7)
    rig.transport.cuts.extend(
        (str(rng.choice(["unsent", "sent", "unheard"])), int(rng.integers(1, 8))) for _ in range(30)
    )
    async with rig.writer(6, max_in_flight_items=10) as writer:
        for at in range(600):
            writer.append({"a": at, "b": np.full(5, at), "c": float(at)})
            history = writer.history
            trajectory: dict[str, Any] = {"n": at}
            for name in "abc":
                if rng.random() < 0.7:
                    length = int(rng.integers(1, min(at, 5) + 2))
                    trajectory[name] = history[name][-length:] if rng.random() < 0.7 else history[name][[-1, -length]]
            await writer.create_item("t", trajectory=trajectory)
    for at, data in enumerate(await rig.data("t", 600)):
        assert data["n"] == at
        for name in data.keys() & set("abc"):
            values = data[name].reshape(len(data[name]), -1)[:, 0]
            assert values[-1] == at if np.all(np.diff(values) > 0) else values[0] == at


async def test_a_server_that_was_away_gets_what_waited(rig: Rig) -> None:
    async with rig.writer() as writer:
        writer.append(step(0))
        trajectory = {"o": writer.history["obs"][-1]}
        await writer.create_item("t", trajectory=trajectory)
        await writer.flush()
        rig.transport.is_down = True
        rig.transport.break_streams()
        for _ in range(5):
            await writer.create_item("t", trajectory=trajectory)
        await asyncio.sleep(0.05)
        assert rig.tables[0].info.current_size == 1
        rig.transport.is_down = False
        await writer.flush(timeout=5)
        assert rig.tables[0].info.current_size == 6


async def test_a_server_that_came_back_as_another_process_gets_what_was_not_confirmed(rig: Rig) -> None:
    async with rig.writer() as writer:
        for at in range(30):
            writer.append(step(at))
            await writer.create_item("t", trajectory={"a": writer.history["action"][-2:]})
            if at == 9:
                await writer.flush()
                rig.restart()
        await writer.flush(timeout=5)
    assert [data["a"][-1] for data in await rig.data("t", 30)] == list(range(30))


async def test_when_nothing_answers_for_too_long_calls_fail_and_items_stay() -> None:
    async with Rig(queue(), connect_timeout=0.05) as rig, rig.writer(max_in_flight_items=2) as writer:
        writer.append(step(0))
        trajectory = {"o": writer.history["obs"][-1]}
        rig.transport.is_down = True
        for _ in range(2):
            await writer.create_item("t", trajectory=trajectory)
        with pytest.raises(Unavailable):
            await writer.flush()
        with pytest.raises(Unavailable):
            await writer.create_item("t", trajectory=trajectory)
        rig.transport.is_down = False
        await writer.flush(timeout=5)
        assert rig.tables[0].info.current_size == 2


async def test_a_stopped_server_fails_those_who_wait(rig: Rig) -> None:
    async with Rig(queue(size=1)) as rig:
        writer = rig.writer()
        writer.append(step(0))
        for _ in range(3):
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
        waiting = asyncio.create_task(writer.flush())
        await asyncio.sleep(0.01)
        rig.tables[0].close()
        with pytest.raises(Unavailable):
            await waiting
        writer.abort()


# -- ending -----------------------------------------------------------------------------------------------------------


async def test_leaving_the_block_flushes_also_after_an_ordinary_exception(rig: Rig) -> None:
    async def write() -> None:
        async with rig.writer() as writer:
            writer.append(step(0))
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write()
    assert rig.tables[0].info.current_size == 1


async def test_leaving_after_an_exception_tells_at_once_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(queue(size=1)) as rig:

        async def write() -> None:
            async with rig.writer() as writer:
                writer.append(step(0))
                for _ in range(4):
                    await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
                await writer.flush(3)
                raise ValueError("boom")

        leaving = asyncio.create_task(write())
        await until(lambda: "leaving after ValueError('boom'): waiting for 3 unconfirmed items" in caplog.text)
        assert not leaving.done()
        await rig.read("t", 4)
        with pytest.raises(ValueError, match="boom"):
            await leaving


async def test_a_list_of_histories_is_told_from_an_array(rig: Rig) -> None:
    async with rig.writer() as writer:
        for _ in range(6):
            writer.append({"obs": [0.0, 1.0, 2.0, 3.0]})
        with pytest.raises(InvalidArgument, match=r"'obs' is a list of 4 columns; .*np.asarray\(obs, np.float64\)"):
            await writer.create_item("t", trajectory={"obs": writer.history["obs"][-5:]})


@pytest.mark.parametrize("error", [asyncio.CancelledError, ReplayError, KeyboardInterrupt])
async def test_leaving_the_block_by_a_cancellation_drops_what_waits_at_once(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig(queue(size=1)) as rig:
        writer = rig.writer()

        async def write() -> None:
            async with asyncio.timeout(1), writer:
                writer.append(step(0))
                for _ in range(4):
                    await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
                await writer.flush(3)
                raise error

        with pytest.raises(error):
            await write()
        assert "dropped 3 items" in caplog.text
        with pytest.raises(Closed):
            writer.append(step(1))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(await rig.data("t", 1)) == 1
        assert rig.tables[0].info.current_size == 0


async def test_a_closed_writer_says_so(rig: Rig) -> None:
    writer = rig.writer()
    writer.append(step(0))
    column = writer.history["obs"][-1]
    await writer.close()
    await writer.close()
    writer.abort()
    with pytest.raises(Closed):
        writer.append(step(1))
    for call in (
        writer.create_item("t", trajectory={"o": column}),
        writer.flush(),
        writer.end_episode(),
        writer.__aenter__(),
    ):
        with pytest.raises(Closed):
            await call


async def test_close_that_ran_out_of_time_can_be_repeated() -> None:
    async with Rig(queue(size=1)) as rig:
        writer = rig.writer()
        for _ in range(2):
            await writer.create_item("t", trajectory={"x": 1})
        with pytest.raises(DeadlineExceeded):
            await writer.close(timeout=0.01)
        await rig.data("t", 2)
        await writer.close(timeout=1)


async def test_a_writer_dropped_without_close_is_logged_and_its_task_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(queue(size=1)) as rig:
        before = asyncio.all_tasks()
        writer = rig.writer()
        writer.append(step(0))
        for _ in range(3):
            await writer.create_item("t", trajectory={"o": writer.history["obs"][-1]})
        await writer.flush(2)
        assert asyncio.all_tasks() > before
        with caplog.at_level(logging.WARNING):
            del writer
            gc.collect()
        assert "without close(), with 2 items" in caplog.text
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


async def test_cancelling_at_random_points_leaks_nothing_and_breaks_nothing() -> None:
    rng = np.random.default_rng(1)
    async with Rig(queue(size=3), Table("u", max_size=50, rate_limiter=MinSize(1))) as rig:
        await rig.connector.tables()
        before = asyncio.all_tasks()

        async def act(number: int) -> None:
            async with rig.writer(4, max_in_flight_items=2) as writer:
                for at in range(4):
                    writer.append(step(number * 10 + at))
                    await writer.create_item("t", trajectory={"o": writer.history["obs"][-1:]})
                    await writer.create_item("u", trajectory={"o": writer.history["obs"][-2:]})
                await writer.end_episode()

        for number in range(150):
            task = asyncio.create_task(act(number))
            for _ in range(int(rng.integers(0, 40))):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=2)
            assert task.done()
            size = rig.tables[0].info.current_size
            if size:
                await rig.data("t", size)
        assert asyncio.all_tasks() == before
        async with rig.writer() as writer:
            await writer.create_item("t", trajectory={"x": 1})
        assert rig.tables[0].info.current_size >= 1
