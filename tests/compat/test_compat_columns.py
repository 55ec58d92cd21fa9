from __future__ import annotations

import numpy as np
import pytest

from reverb_async import ArraySpec, Table
from reverb_async.compat.columns import ColumnHead, ColumnLayouts, kind_of
from reverb_async.core.encoded import EncodedItems
from reverb_async.core.storage import Storage
from reverb_async.errors import InvalidArgument, SignatureMismatch

FLOAT, INT64, STRING, RESOURCE = 1, 9, 7, 20


@pytest.fixture
def layouts() -> ColumnLayouts:
    return ColumnLayouts(EncodedItems(Storage(reserve_bytes=1 << 26)))


def heads(*columns: tuple[int, tuple[int, ...]], squeeze: bool = False, width: int = 0) -> tuple[ColumnHead, ...]:
    return tuple(ColumnHead(kind_of(*column), squeeze, width) for column in columns)


def test_there_is_one_kind_for_tensors_alike() -> None:
    kinds = [kind_of(FLOAT, (at,)) for at in range(3000)]
    assert all(kind_of(FLOAT, (at,)) is kind for at, kind in enumerate(kinds))


def test_a_dtype_without_counterpart_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="20"):
        kind_of(RESOURCE, ())


def test_items_of_a_table_without_a_signature_are_lists_of_columns(layouts: ColumnLayouts) -> None:
    table = Table("t", max_size=5)
    layout = layouts.find(table, heads((FLOAT, (3,)), (INT64, ())), is_one_step=True).layout
    assert layout.structure.unflatten(["x", "y"]) == ["x", "y"]
    assert layout.sampled_specs() == [ArraySpec((None, 3), np.float32), ArraySpec((None,), np.int64)]


def test_the_same_columns_have_the_same_layout(layouts: ColumnLayouts) -> None:
    table, other = Table("t", max_size=5), Table("u", max_size=5)
    found = [layouts.find(each, heads((FLOAT, (3,))), is_one_step=False) for each in (table, table, other)]
    assert found[0] is found[1]
    assert found[0].layout is found[2].layout


def test_only_one_step_items_lose_the_axis_their_signature_lacks(layouts: ColumnLayouts) -> None:
    table = Table("t", max_size=5, signature={"a": ArraySpec((3,), np.float32)})
    step, sequence = (layouts.find(table, heads((FLOAT, (3,))), is_one_step=one).layout for one in (True, False))
    assert step.sampled_specs() == [ArraySpec((3,), np.float32)]
    assert sequence.sampled_specs() == [ArraySpec((None, 3), np.float32)]


def test_strings_of_any_length_fit_text_and_bytes(layouts: ColumnLayouts) -> None:
    for dtype, shown in (("str", "U"), ("bytes", "S"), ("S16", "S16"), ("U8", "U8")):
        table = Table("t", max_size=5, signature=ArraySpec((), dtype))
        fit = layouts.find(table, heads((STRING, ()), squeeze=True), is_one_step=True)
        assert fit.layout.sampled_specs() == [ArraySpec((), shown)]


def test_arrays_of_strings_get_a_width(layouts: ColumnLayouts) -> None:
    fit = layouts.find(Table("t", max_size=5), heads((STRING, (2,)), width=5), is_one_step=True)
    assert fit.layout.sampled_specs() == [ArraySpec((None, 2), "S8")]


def test_lengths_are_checked_where_the_signature_names_them(layouts: ColumnLayouts) -> None:
    table = Table("t", max_size=5, signature=[ArraySpec((2,), np.int64), ArraySpec((None,), np.int64)])
    fit = layouts.find(table, heads((INT64, ()), (INT64, ())), is_one_step=False)
    fit.check(table, [2, 9])
    with pytest.raises(SignatureMismatch, match="column 0 has 3 steps, the signature wants 2"):
        fit.check(table, [3, 9])


def test_what_is_remembered_is_bounded(layouts: ColumnLayouts) -> None:
    table = Table("t", max_size=5)
    for size in range(200):
        layouts.find(table, heads(*[(FLOAT, (size,))] * 1000), is_one_step=True)
    assert len(layouts._fits) <= 66
