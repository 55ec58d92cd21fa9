import dataclasses

import numpy as np
import pytest

from reverb_async.client.sampling.batch import Batch, make_batch, make_sample
from reverb_async.client.sampling.collate import Collator
from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.sampling import SampledBatch, SampledLayout, SampledPiece


class Updater:
    def __init__(self):
        self.calls = []

    async def update(self, keys, priorities):
        self.calls.append((keys, priorities))


def sampled(size):
    layout = SampledLayout(0, flatten({"x": 0})[1], 1, ((0, True, ArraySpec((), np.int64)),))
    return SampledBatch(
        1,
        np.arange(size, dtype=np.uint64) + 7,
        np.linspace(0.1, 0.5, size),
        np.full(size, 2.5),
        np.full(size, 3, np.int32),
        np.full(size, 10),
        np.full(size, 1e9),
        True,
        [SampledPiece(layout, None, [1], [np.arange(size)])],
    )


def make(size=4):
    updater = Updater()
    return make_batch(sampled(size), Collator(), "t", updater), updater


def test_a_samples_info_are_python_scalars():
    sample = make_sample(sampled(1), Collator())
    info = dataclasses.astuple(sample.info)
    assert info == (7, 0.1, 10, 2.5, 3, True, 1e9)
    assert [type(value) for value in info] == [int, float, int, float, int, bool, float]
    assert sample.data == {"x": 0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.info.key = 3


def test_a_batchs_info_are_arrays_with_the_same_names():
    batch, _ = make()
    assert len(batch) == 4
    assert batch.table == "t"
    assert batch.info.key.tolist() == [7, 8, 9, 10]
    assert batch.info.rate_limited.tolist() == [True] * 4
    dtypes = {name: getattr(batch.info, name).dtype.name for name in batch.info.__slots__}
    assert dtypes == {
        "key": "uint64",
        "probability": "float64",
        "table_size": "int64",
        "priority": "float64",
        "times_sampled": "int32",
        "rate_limited": "bool",
        "inserted_at": "float64",
    }


@pytest.mark.parametrize("exponent", [0, 0.4, 1.0, np.float32(0.5)])
def test_importance_weights_are_those_of_the_paper(exponent):
    batch, _ = make()
    expected = (10 * batch.info.probability) ** -float(exponent)
    plain = batch.importance_weights(exponent, normalize=None)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    np.testing.assert_allclose(batch.importance_weights(exponent), expected / expected.max(), rtol=1e-6)
    assert batch.importance_weights(exponent).max() == 1.0


@pytest.mark.parametrize(("exponent", "normalize"), [("0.4", "max"), (np.nan, "max"), (True, "max"), (0.4, "sum")])
def test_wrong_weights_are_refused(exponent, normalize):
    with pytest.raises(InvalidArgument, match=r"exponent|normalize"):
        make()[0].importance_weights(exponent, normalize=normalize)


async def test_priorities_go_to_the_items_of_the_batch():
    batch, updater = make()
    for priorities in ([1, 2, 3, 4], np.arange(1, 5, dtype=np.float32), (1.0, 2.0, 3.0, 4.0)):
        await batch.update_priorities(priorities)
        keys, sent = updater.calls.pop()
        assert keys.tolist() == [7, 8, 9, 10]
        assert sent.dtype == np.float64
        assert sent.tolist() == [1, 2, 3, 4]


async def test_what_was_queued_does_not_change_with_the_callers_arrays():
    batch, updater = make()
    priorities = np.ones(4)
    await batch.update_priorities(priorities)
    priorities[:] = batch.info.key[:] = 0
    assert updater.calls[0][0].tolist() == [7, 8, 9, 10]
    assert updater.calls[0][1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [[1.0], 1.0, [[1.0] * 4], [1, 2, 3, np.nan], [1, 2, 3, -np.inf], "abcd", None])
async def test_wrong_priorities_are_refused(wrong):
    batch, updater = make()
    with pytest.raises(InvalidArgument, match="priorities"):
        await batch.update_priorities(wrong)
    assert not updater.calls


def test_a_batch_is_no_place_to_write_to():
    batch, _ = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.data = None
    assert isinstance(batch, Batch)
    assert "_updater" not in repr(batch)
