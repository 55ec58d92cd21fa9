"""What an item costs the server: its resident memory before and after, shared mappings included."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from benchmarks.payloads import SMALL_BYTES
from benchmarks.processes import Contestant, WorkerError, ours
from benchmarks.result import Result, simple_result
from benchmarks.subject import BYTES, Options, PeerWork, Role, Session, Subject, Tally, Work
from benchmarks.subjects.work import PRIORITIZED, TABLE, UNIFORM, fill
from benchmarks.usage import resident_bytes

SMALL_ITEMS = 1_000_000
ATARI_ITEMS = 100_000
_MOST_ROUNDS = 3


async def filling(session: Session, *, items: int) -> Work:
    """Fill the table once, however long it takes."""
    await session.client.server_info()  # Connected: what a connection costs is not an item's.

    async def work(seconds: float) -> Tally:
        await fill(session.client, items)
        return Tally(items, items * SMALL_BYTES)

    return work


async def filling_with_stacks(session: Session, *, items: int) -> Work:
    """Write an episode of random 84x84 frames; each item is the last four of them."""
    await session.client.server_info()

    async def work(seconds: float) -> Tally:
        rng = np.random.default_rng(0)
        async with session.client.trajectory_writer(num_keep_alive_refs=4) as writer:
            for at in range(items + 3):
                writer.append({"frame": np.frombuffer(rng.bytes(84 * 84), np.uint8).reshape(84, 84)})
                if at >= 3:
                    await writer.create_item(TABLE, 1.0, trajectory={"frame": writer.history["frame"][-4:]})
        return Tally(items, items * 84 * 84)

    return work


def bytes_per_item(contestant: Contestant) -> float:
    """Have the workers fill the server; return by how much it grew, per item."""
    assert contestant.server_pid is not None
    before = resident_bytes(contestant.server_pid)
    filled = contestant.play(0.0)
    after = resident_bytes(contestant.server_pid)
    if before is None or after is None:
        raise WorkerError("this system does not tell the memory of a process: no /proc")
    return (after - before) / filled.items


def measure_memory(subject: Subject, options: Options) -> Iterable[Result]:
    """Fill a fresh server a few times."""
    values = []
    for _ in range(min(_MOST_ROUNDS, options.rounds)):
        with ours(subject) as contestant:
            values.append(bytes_per_item(contestant))
    yield simple_result(subject, values)


_fill_small = Role(partial(filling, items=SMALL_ITEMS))

SUBJECTS = (
    Subject(
        "memory",
        "server memory per small item, 1M items, Uniform, key index included",
        BYTES,
        200,
        (UNIFORM,),
        (_fill_small,),
        {"payload_bytes": SMALL_BYTES, "items": SMALL_ITEMS},
        measure_memory,
        peers=(PeerWork("dm-reverb", "memory"),),
    ),
    Subject(
        "memory-prioritized",
        "server memory per small item, 1M items, Prioritized(0.6), key index included",
        BYTES,
        None,
        (PRIORITIZED,),
        (_fill_small,),
        {"payload_bytes": SMALL_BYTES, "items": SMALL_ITEMS},
        measure_memory,
    ),
    Subject(
        "memory-atari",
        "server memory per item of four 84x84 frames, three shared with the item before, random bytes, 100k items",
        BYTES,
        7_400,
        (UNIFORM,),
        (Role(partial(filling_with_stacks, items=ATARI_ITEMS)),),
        {"payload_bytes": 4 * 84 * 84, "items": ATARI_ITEMS},
        measure_memory,
        peers=(PeerWork("dm-reverb", "memory_atari"),),
    ),
)
