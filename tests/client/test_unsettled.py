from __future__ import annotations

from reverb_async.client.writing.unsettled import Refused


def test_refused_items_are_counted_outside_of_ranges() -> None:
    refused = Refused()
    for seq, count in [(3, 1), (4, 2), (9, 1), (20, 5)]:
        refused.add(seq, count)
    assert refused.count_outside([]) == 9
    assert refused.count_outside([(1, 0)]) == 9
    assert refused.count_outside([(1, 4)]) == 7
    assert refused.count_outside([(1, 4), (9, 1), (22, 10)]) == 3
    assert refused.count_outside([(1, 30)]) == 0
