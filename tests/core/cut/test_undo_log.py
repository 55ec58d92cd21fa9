from __future__ import annotations

import numpy as np
import pytest

from reverb_async.core.cut.undo_log import UndoLog

DTYPE = np.dtype([("key", "<u8"), ("state", "<i8")])


def images(start: int, n: int) -> np.ndarray:
    values = np.zeros(n, DTYPE)
    values["key"] = np.arange(start, start + n)
    return values


@pytest.mark.parametrize(
    "sizes", [[1], [3, 4096, 2], [5000, 1, 1, 9000], [3000] * 25, [4095] * 16 + [16, 1], [4096, 4096], []]
)
def test_every_image_is_found_under_the_number_it_came_under(sizes: list[int]) -> None:
    log, total = UndoLog(DTYPE), 0
    for size in sizes:
        log.append(images(total, size))
        total += size
        assert len(log) == total
    wanted = np.random.default_rng(0).permutation(total)[: total // 2 + 1]
    target = np.zeros(total + 1, DTYPE)
    positions = np.arange(len(wanted))[::-1].copy()
    log.fill(target, positions, wanted)
    assert target["key"][positions].tolist() == wanted.tolist()
    assert not target["key"][len(wanted) :].any()
