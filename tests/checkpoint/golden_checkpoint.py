"""Write a checkpoint of the present format into tests/checkpoint/golden: run this file.

Only once for each format: those that were released must restore for ever.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import reverb_async as ra
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.export import export
from reverb_async.checkpoint.loading import newest_whole
from reverb_async.checkpoint.records import FORMAT

GOLDEN = Path(__file__).with_name("golden")
DRAWN = 40


def tables() -> list[ra.Table]:
    signature = {"t": ra.ArraySpec((), str), "b": ra.ArraySpec((), bytes), "r": ra.ArraySpec((None, 2), np.float16)}
    heaps = {"sampler": ra.selectors.MaxHeap(), "remover": ra.selectors.MinHeap()}
    return [
        ra.Table("replay", max_size=50, sampler=ra.selectors.Prioritized(0.6), seed=5),
        ra.Table("uniform", max_size=50, remover=ra.selectors.Uniform(), seed=6),
        ra.Table("heap", max_size=20, max_times_sampled=3, **heaps),
        ra.Table.queue("texts", 10, signature=signature),
        ra.Table("steps", max_size=100, rate_limiter=ra.rate_limiters.SampleToInsertRatio(2.0, 2, 50.0), seed=7),
        ra.Table("deepmind", max_size=100, sampler=ra.selectors.Lifo(), remover=ra.selectors.Lifo()),
    ]


def small(start: int, n: int) -> dict[str, Any]:
    at = np.arange(start, start + n)
    return {"x": np.stack([at, -at], axis=1).astype(np.float32), "y": at.astype(np.uint8), "z": at % 3 == 0}


async def fill(path: Path) -> None:
    server = ra.Server(tables(), checkpointer=ra.Checkpointer(path))
    async with server, ra.Client(server.address) as client, ra.Client(f"reverb://{server.address}") as deepmind:
        for name in ("replay", "uniform", "heap"):
            keys = (await client.insert_batch(small(0, 30), {name: np.arange(30) % 4 + 1.0}))[name]
        await client.mutate_priorities("heap", (keys[:5], np.full(5, 4.0)), keys[5:7])
        for n in range(4):
            row = {"t": "ä" * n, "b": bytes(n), "r": np.full((n, 2), n, np.float16)}
            await client.insert(row, {"texts": 1.0})
        async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
            for step in range(20):
                writer.append({"frame": np.full((3, 3), step, np.uint8), "name": f"step {step}"})
                history = writer.history
                if step >= 3:
                    trajectory = {
                        "frames": history["frame"][-4:],
                        "name": history["name"][-1],
                        "return": np.float64(step),
                    }
                    await writer.create_item("steps", 1.0, trajectory=trajectory)
        await client.checkpoint()
        for name in ("replay", "uniform"):
            await client.insert_batch(small(30, 40), {name: 2.0})
        for n in range(3):
            await deepmind.insert({"a": np.arange(n + 2, dtype=np.int32), "b": f"text {n}"}, {"deepmind": n + 1.0})
        for name, n in (("heap", 7), ("texts", 1), ("steps", 30)):
            async for _ in client.sample_batches(name, n, num_batches=1):
                pass


async def describe(path: Path) -> dict[str, Any]:
    """Return everything there is to see in the newest checkpoint, as JSON knows it; changes nothing."""
    image = newest_whole(Directory(path), "fail")
    assert image is not None
    with tempfile.TemporaryDirectory() as out:
        shown = {
            file.name: {name: [str(array.dtype), array.tolist()] for name, array in np.load(file).items()}
            for file in export(image, Path(out), "npz", list(image.tables))
        }
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(path, copy, dirs_exist_ok=True)
        served = tables()
        async with ra.Server(served, port=None, checkpointer=ra.Checkpointer(copy)) as server:
            client = server.client()
            infos = await client.server_info()
            limiters = {name: str(info.rate_limiter_info) for name, info in infos.items()}
            drawn = {name: (await client.sample_batch(name, DRAWN)).info.key.tolist() for name in ("replay", "uniform")}
            order = [(await client.sample_one(name, timeout=5)).info.key for name in ("heap", "texts", "deepmind")]
    return {"items": shown, "limiters": limiters, "drawn": drawn, "first": order}


async def make() -> None:
    path = GOLDEN / f"format-{FORMAT}"
    if path.exists():
        sys.exit(f"{path} exists: what was released stays as it is")
    await fill(path)
    (path / "LOCK").unlink()
    (GOLDEN / f"format-{FORMAT}.json").write_text(json.dumps(await describe(path), indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(make())
