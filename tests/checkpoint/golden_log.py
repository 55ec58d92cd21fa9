"""Write a checkpoint and a log of the present format into tests/checkpoint/golden: run this file.

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
from golden_checkpoint import GOLDEN, small, tables

import reverb_async as ra
from reverb_async.checkpoint.records import FORMAT


async def fill(path: Path, copy: Path) -> None:
    """Copy the directory of a server as if that were killed, with all there can be in its log."""
    server = ra.Server(tables(), checkpointer=ra.Checkpointer(path), durability="wal")
    async with server, ra.Client(server.address) as client, ra.Client(f"reverb://{server.address}") as deepmind:
        await client.insert_batch(small(0, 30), {"replay": 1.0})
        keys = (await client.insert_batch(small(0, 30), {"heap": np.arange(30) % 4 + 1.0}))["heap"]
        await client.insert_batch(small(0, 5), {"uniform": 1.0})
        await client.checkpoint()
        await client.insert_batch(small(30, 40), {"replay": 2.0})
        await client.mutate_priorities("heap", (keys[20:25], np.full(5, 4.0)), keys[25:27])
        await client.reset("uniform")
        await client.insert_batch(small(5, 3), {"uniform": 1.0})
        for n in range(4):
            row = {"t": "ä" * n, "b": bytes(n), "r": np.full((n, 2), n, np.float16)}
            await client.insert(row, {"texts": 1.0})
        async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
            for step in range(20):
                writer.append({"frame": np.full((3, 3), step, np.uint8), "name": f"step {step}"})
                history = writer.history
                if step >= 3:
                    trajectory = {"frames": history["frame"][-4:], "name": history["name"][-1]}
                    await writer.create_item("steps", 1.0, trajectory=trajectory)
        for n in range(3):
            await deepmind.insert({"a": np.arange(n + 2, dtype=np.int32), "b": f"text {n}"}, {"deepmind": n + 1.0})
        shutil.copytree(path, copy)


async def describe(path: Path) -> dict[str, Any]:
    """Return what a server finds in a directory, as JSON knows it, and go on from there; changes `path`."""
    found: dict[str, Any] = {}
    served = tables()
    checkpointer = ra.Checkpointer(path, on_corrupt="fail")
    async with ra.Server(served, port=None, checkpointer=checkpointer, durability="wal") as server:
        client = server.client()
        infos = await client.server_info()
        for table in served:
            slots = table.state.live_slots()
            columns = table.state.slots.describe(slots[table.state.slots.key[slots].argsort()])
            found[table.name] = {name: column.tolist() for name, column in columns.items()}
            found[table.name]["limiter"] = str(infos[table.name].rate_limiter_info)
        found["x"] = sorted({float(x) for x in (await client.sample_batch("replay", 2000)).data["x"][:, 0]})
        found["text"] = (await client.sample_one("texts")).data["t"]
        steps = await client.sample_batch("steps", 1)
        found["frames"] = np.asarray(steps.data["frames"]).shape
    return found


async def make() -> None:
    path = GOLDEN / f"log-format-{FORMAT}"
    if path.exists():
        sys.exit(f"{path} exists: what was released stays as it is")
    with tempfile.TemporaryDirectory() as directory:
        await fill(Path(directory) / "served", path)
        (path / "LOCK").unlink()
        shutil.copytree(path, Path(directory) / "copy")
        described = await describe(Path(directory) / "copy")
    path.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(make())
