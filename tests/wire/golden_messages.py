"""The messages behind ``golden/*.bin``.

What a released version wrote must be readable for ever, so these files are never rewritten: to add a message, name it
here and run this file, which writes only what is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reverb_async.protocol.message import Message
from reverb_async.wire.codec import encode
from reverb_async.wire.generated.reverb_async import v1

GOLDEN = Path(__file__).parent / "golden"

FRAMES = {
    "frame_header_only": Message({"consumed_through": 12, "credits": 2}),
    "frame_insert": Message(
        {"groups": [[0, [["float32", [4]], ["int32", []]]]], "steps": [[0, 0, 3]], "session": bytes(range(16))},
        [np.arange(12, dtype=np.float32).reshape(3, 4), np.array([7, -1, 2**31 - 1], np.int32)],
    ),
    "frame_batch": Message(
        {
            "table": "replay",
            "size": 2,
            "structure": ["obs", "reward"],
            "probability": 0.25,
            "done": False,
            "note": None,
        },
        [
            np.array([1, 2**63 + 5], np.uint64),
            np.array([0.5, 0.25]),
            np.arange(2 * 5, dtype=np.uint8).reshape(2, 5),
            np.empty((0, 3), np.float32),
            np.array([True, False]),
        ],
    ),
    "frame_part": Message(
        {"part": 0, "parts": 2, "pieces": [[0, 0, 100]], "header": {"a": [1, "é"]}, "sizes": [150]},
        [np.arange(100, dtype=np.uint8)],
    ),
}

CONTROL = {
    "hello_request": v1.HelloRequest(protocol_version=1, features=["tags"], client_name="actor-1"),
    "hello_response": v1.HelloResponse(
        protocol_version=1, server_epoch=bytes(range(16)), key_block=5 << 20, max_message_bytes=64 << 20
    ),
    "mutate_request": v1.MutatePrioritiesRequest(
        table="replay", update_keys=[0, 2**64 - 1], update_priorities=[0.5, 1e300], delete_keys=[3]
    ),
    "mutate_response": v1.MutatePrioritiesResponse(updated=1, deleted=2, unknown=3),
    "reset_request": v1.ResetRequest(table="replay"),
    "server_info_response": v1.ServerInfoResponse(
        tables=[
            v1.TableInfo(
                name="replay",
                sampler_options=v1.SelectorOptions(prioritized=v1.SelectorOptionsPrioritized(priority_exponent=0.6)),
                remover_options=v1.SelectorOptions(fifo=True, is_deterministic=True),
                max_size=1000,
                max_times_sampled=-1,
                rate_limiter_info=v1.RateLimiterInfo(
                    samples_per_insert=1.5,
                    min_size_to_sample=10,
                    min_diff=-1e300,
                    max_diff=1e300,
                    insert_stats=v1.CallStats(completed=7),
                    sample_stats=v1.CallStats(completed=8),
                ),
                signature=b"\x80",
                current_size=1,
                num_episodes=2,
                num_deleted_episodes=3,
                num_unique_samples=4,
                num_deletes=5,
                stored_bytes=6,
                stored_rows=7,
                waiters=[v1.Waiter(kind="insert", reason="needs 3 more samples", since=1.5, count=2)],
                inserts_per_second=0.5,
                samples_per_second=0.25,
                oldest_item_age=9.0,
                newest_item_age=0.5,
            )
        ]
    ),
    "checkpoint_response": v1.CheckpointResponse(path="/data/ckpt-1"),
}


def main() -> None:
    """Write the files that are missing."""
    encoded = {name: encode(message).join() for name, message in FRAMES.items()}
    encoded |= {name: bytes(message) for name, message in CONTROL.items()}
    for name, data in encoded.items():
        path = GOLDEN / f"{name}.bin"
        if not path.exists():
            path.write_bytes(data)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
