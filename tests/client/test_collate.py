from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.client.sampling.collate import Collator, as_columns
from reverb_async.core.nest import flatten
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec, leaf_spec
from reverb_async.core.storage.backing import aligned_empty
from reverb_async.core.variable import encode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.sampling import SampledBatch, SampledLayout, SampledPiece


def aligned(array):
    out = aligned_empty(array.shape, array.dtype)
    out[...] = array
    return out


def fixed(items):
    """A column of fixed rows from items of one step each, squeezed."""
    array = aligned(np.asarray(items))
    return ArraySpec(array.shape[1:], array.dtype), True, 1, array


def steps(items):
    """A column of fixed rows from items of several steps each."""
    arrays = [np.asarray(item) for item in items]
    lengths = np.array([len(array) for array in arrays])
    length = int(lengths[0]) if (lengths == lengths[0]).all() else lengths
    rows = aligned(np.concatenate(arrays))
    return ArraySpec(rows.shape[1:], rows.dtype), False, length, rows


def variable(items, shape=None, *, per_item=None):
    """A column of variable rows; items are rows, or `per_item` rows each."""
    first = leaf_spec(items[0])
    spec = ArraySpec(shape if shape is not None else tuple(None for _ in first.shape), first.dtype)
    rows = encode_rows(items, spec)
    rows.data = aligned(rows.data)
    return spec, per_item is None, 1 if per_item is None else per_item, rows


def piece(data, positions=None, number=0):
    """A piece from a nest of the columns above."""
    columns, structure = flatten_columns(data)
    leaves = tuple((view, squeeze, spec) for view, (spec, squeeze, _, _) in enumerate(columns))
    layout = SampledLayout(number, structure, len(columns), leaves)
    lengths = [length for _, _, length, _ in columns]
    places = None if positions is None else np.array(positions)
    return SampledPiece(layout, places, lengths, [column for *_, column in columns])


def flatten_columns(data):
    marks = {}

    def mark(value):
        if type(value) is tuple and len(value) == 4 and isinstance(value[0], ArraySpec):
            marks[f"mark {len(marks)}"] = value
            return f"mark {len(marks) - 1}"
        if isinstance(value, dict):
            return {key: mark(child) for key, child in value.items()}
        if isinstance(value, tuple):
            return type(value)(*map(mark, value)) if hasattr(value, "_fields") else tuple(map(mark, value))
        return value

    leaves, structure = flatten(mark(data))
    return [marks[leaf] for leaf in leaves], structure


def batch(*pieces, size):
    ones = np.ones(size)
    return SampledBatch(
        1,
        np.arange(size, dtype=np.uint64),
        ones,
        ones,
        np.ones(size, np.int32),
        np.ones(size, int),
        ones,
        False,
        [*pieces],
    )


def collated(data, size, **options):
    return Collator(**options).batch(batch(piece(data), size=size))[0]


# -- one layout, equal lengths ----------------------------------------------------------------------------------------


def test_fixed_rows_are_views_of_what_was_received():
    column = steps([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    obs, x = column, fixed([1.5, 2.5])
    data = collated({"obs": obs, "x": x}, 2)
    assert data["obs"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert data["x"].tolist() == [1.5, 2.5]
    assert np.shares_memory(data["obs"], obs[3])
    assert np.shares_memory(data["x"], x[3])
    for array in data.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0


def test_text_comes_as_python_objects():
    texts = variable(["a", "", "déjà"])
    raw = variable([b"\x00", b"1", b""])
    both = collated({"text": texts, "raw": raw}, 3)
    assert both["text"].dtype == object
    assert both["text"].tolist() == ["a", "", "déjà"]
    assert both["raw"].tolist() == [b"\x00", b"1", b""]
    said = collated({"said": variable(["a", "b", "c", "d"], per_item=2)}, 2)
    assert said["said"].tolist() == [["a", "b"], ["c", "d"]]


def test_variable_rows_of_one_shape_are_dense():
    data = collated({"x": variable([np.arange(3), np.arange(3) + 7])}, 2)
    assert data["x"].tolist() == [[0, 1, 2], [7, 8, 9]]
    assert data["x"].flags.writeable
    assert data["x"].ctypes.data % 64 == 0
    grid = variable([np.full((2, 2), n) for n in range(4)], per_item=2)
    assert collated({"x": grid}, 2)["x"].shape == (2, 2, 2, 2)


# -- a single item ----------------------------------------------------------------------------------------------------


def single(data, **options):
    return Collator(**options).single(batch(piece(data), size=1))


def test_a_single_item_comes_as_it_was_inserted():
    data = single(
        {
            "number": fixed([np.float32(1.5)]),
            "flag": fixed([True]),
            "fixed": fixed(np.array(["abc"], "U4")),
            "image": fixed([[[1, 2], [3, 4]]]),
            "slice": steps([[1, 2, 3]]),
            "text": variable(["hello"]),
            "said": variable(["a", "b"], per_item=2),
            "tokens": variable([np.arange(4)]),
        }
    )
    assert type(data["number"]) is np.float32
    assert type(data["flag"]) is np.bool_
    assert data["fixed"] == "abc"
    assert data["image"].tolist() == [[1, 2], [3, 4]]
    assert data["slice"].tolist() == [1, 2, 3]
    assert type(data["text"]) is str
    assert data["said"].tolist() == ["a", "b"]
    assert data["tokens"].tolist() == [0, 1, 2, 3]
    assert data["image"].flags.c_contiguous
    assert data["image"].ctypes.data % 64 == 0


def test_a_single_item_of_unequal_steps_is_ragged():
    ragged = single({"x": variable([np.arange(2), np.arange(5)], per_item=2)})["x"]
    assert isinstance(ragged, Ragged)
    assert [row.tolist() for row in ragged] == [[0, 1], [0, 1, 2, 3, 4]]
    images = single({"x": variable([np.zeros((1, 2)), np.zeros((3, 4))], per_item=2)})["x"]
    assert [image.shape for image in images] == [(1, 2), (3, 4)]


# -- unequal lengths --------------------------------------------------------------------------------------------------

UNEQUAL = {
    "steps": lambda: steps([[1, 2, 3], [4], [5, 6]]),
    "rows": lambda: variable([np.array(row) for row in ([1, 2, 3], [4], [5, 6])]),
}


@pytest.fixture(params=UNEQUAL)
def unequal(request):
    return UNEQUAL[request.param]()


def test_unequal_lengths_are_refused_with_the_column_and_the_ways_out(unequal):
    with pytest.raises(InvalidArgument) as caught:
        collated({"nested": {"x": unequal}}, 3)
    for part in ("('nested', 'x')", "1 to 3", "3, 1, 2", "'pad'", "'flat'", "'list'"):
        assert part in str(caught.value)


def test_padding_gives_lengths(unequal):
    sampled = batch(piece({"x": unequal, "y": fixed([1.0, 2.0, 3.0])}), size=3)
    data, lengths = Collator(ragged="pad", pad_value=-1).batch(sampled)
    assert data["x"].tolist() == [[1, 2, 3], [4, -1, -1], [5, 6, -1]]
    assert lengths["x"].tolist() == [3, 1, 2]
    assert lengths["x"].dtype == np.int64
    assert data["y"].tolist() == [1, 2, 3]
    assert lengths["y"].tolist() == [1, 1, 1]
    assert data["x"].ctypes.data % 64 == 0


def test_padding_on_the_left_and_to_a_length(unequal):
    data = collated({"x": unequal}, 3, ragged="pad", pad_to=4, pad_side="left")
    assert data["x"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 4], [0, 0, 5, 6]]


@pytest.mark.parametrize("pad_to", [{"a": {"x": 5}}, {("a", "x"): 5}, {"a": 5}, {"a": {("x",): 5}}])
def test_the_length_to_pad_to_may_be_given_by_column(unequal, pad_to):
    values = collated({"a": {"x": unequal}, "b": steps([[1], [2, 3], [4]])}, 3, ragged="pad", pad_to=pad_to)
    assert values["a"]["x"].shape == (3, 5)
    assert values["b"].shape == (3, 2)


def test_the_pad_value_may_be_given_by_column(unequal):
    data = collated({"x": unequal, "b": steps([[1], [2, 3], [4]])}, 3, ragged="pad", pad_value={"x": -100})
    assert data["x"][1].tolist() == [4, -100, -100]
    assert data["b"][0].tolist() == [1, 0]


def test_equal_steps_are_padded_too_when_a_length_is_given():
    data, lengths = Collator(ragged="pad", pad_to=3).batch(batch(piece({"x": steps([[1, 2], [3, 4]])}), size=2))
    assert data["x"].tolist() == [[1, 2, 0], [3, 4, 0]]
    assert lengths["x"].tolist() == [2, 2]
    assert collated({"x": fixed([[1, 2], [3, 4]])}, 2, ragged="pad", pad_to=3)["x"].shape == (2, 2)
    assert collated({"x": fixed([[1, 2], [3, 4]])}, 2, ragged="pad", pad_to={"x": 3})["x"].shape == (2, 3)


def test_text_is_padded_with_empty_text():
    data = collated({"x": variable(["a", "b", "c"], per_item=np.array([1, 2]))}, 2, ragged="pad")
    assert data["x"].tolist() == [["a", ""], ["b", "c"]]


def test_flat_keeps_values_and_offsets_without_a_copy(unequal):
    ragged = collated({"x": unequal}, 3, ragged="flat")["x"]
    assert isinstance(ragged, Ragged)
    assert ragged.values.tolist() == [1, 2, 3, 4, 5, 6]
    assert ragged.offsets.tolist() == [0, 3, 4, 6]
    source = unequal[3] if isinstance(unequal[3], np.ndarray) else unequal[3].data
    assert np.shares_memory(ragged.values, source)


def test_flat_and_list_are_what_they_are_also_when_lengths_happen_to_be_equal():
    for column in (steps([[1, 2], [3, 4]]), variable([np.array([1, 2]), np.array([3, 4])])):
        data = {"x": column, "y": fixed([[1, 2], [3, 4]])}
        flat, listed = collated(data, 2, ragged="flat"), collated(data, 2, ragged="list")
        assert flat["x"].offsets.tolist() == [0, 2, 4]
        assert [item.tolist() for item in listed["x"]] == [[1, 2], [3, 4]]
        assert flat["y"].shape == listed["y"].shape == (2, 2)


def test_a_list_has_arrays_of_the_callers_own(unequal):
    listed = collated({"x": unequal}, 3, ragged="list")["x"]
    assert [item.tolist() for item in listed] == [[1, 2, 3], [4], [5, 6]]
    assert all(item.flags.writeable and item.ctypes.data % 64 == 0 for item in listed)


def test_rows_that_differ_in_more_than_their_length_only_go_into_a_list():
    images = [np.zeros((2, 3)), np.ones((4, 5))]
    for mode in ("error", "pad", "flat"):
        with pytest.raises(InvalidArgument, match=r"\('image',\).*ragged='list'"):
            collated({"image": variable(images)}, 2, ragged=mode)
    listed = collated({"image": variable(images)}, 2, ragged="list")["image"]
    assert [image.shape for image in listed] == [(2, 3), (4, 5)]


def test_text_of_unequal_lengths_has_no_flat_form():
    with pytest.raises(InvalidArgument, match="text"):
        collated({"x": variable(["a", "b", "c"], per_item=np.array([1, 2]))}, 2, ragged="flat")


def test_steps_of_unequal_rows_come_as_a_list_of_items():
    rows = [np.arange(n) for n in (1, 2, 3, 3)]
    column = variable(rows, per_item=2)
    listed = collated({"x": column}, 2, ragged="list")["x"]
    assert isinstance(listed[0], Ragged)
    assert listed[1].tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(InvalidArgument, match="unequal shape"):
        collated({"x": column}, 2)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=8),
    st.sampled_from(["left", "right"]),
    st.integers(0, 3),
    st.booleans(),
)
def test_padded_flat_and_listed_say_the_same(lengths, side, spare, as_rows):
    rng = np.random.default_rng(sum(lengths))
    items = [rng.integers(1, 9, (length, 2)) for length in lengths]
    column = variable(items, (None, 2)) if as_rows else steps(items)
    size, width = len(items), max(1, max(lengths) + spare)
    sampled = batch(piece({"x": column}), size=size)
    padded, seen = Collator(ragged="pad", pad_to={"x": width}, pad_side=side).batch(sampled)
    assert padded["x"].shape == (size, width, 2)
    assert seen["x"].tolist() == lengths
    for row, item in zip(padded["x"], items, strict=True):
        pad = np.zeros((width - len(item), 2), int)
        assert row.tolist() == np.concatenate([item, pad] if side == "right" else [pad, item]).tolist()
    flat = Collator(ragged="flat").batch(sampled)[0]["x"]
    listed = Collator(ragged="list").batch(sampled)[0]["x"]
    for one, other, item in zip(flat, listed, items, strict=True):
        assert one.tolist() == other.tolist() == item.tolist()


# -- several layouts --------------------------------------------------------------------------------------------------


def test_items_of_several_layouts_stand_in_the_order_of_the_batch():
    one = piece({"x": fixed([10, 12]), "t": variable(["a", "c"])}, [0, 2])
    other = piece({"x": fixed([11]), "t": variable(["b"])}, [1], number=1)
    data, lengths = Collator().batch(batch(one, other, size=3))
    assert data["x"].tolist() == [10, 11, 12]
    assert data["t"].tolist() == ["a", "b", "c"]
    assert data["x"].ctypes.data % 64 == 0
    assert lengths is None


def test_layouts_of_unequal_length_are_ragged_together():
    one = piece({"x": steps([[1, 2], [5, 6]])}, [0, 2])
    other = piece({"x": steps([[3], [7, 8, 9]])}, [1, 3], number=1)
    third = piece({"x": variable([np.array([4, 4])])}, [4], number=2)
    sampled = batch(one, other, third, size=5)
    with pytest.raises(InvalidArgument, match="2, 1, 2, 3, 2"):
        Collator().batch(sampled)
    padded, lengths = Collator(ragged="pad").batch(sampled)
    assert padded["x"].tolist() == [[1, 2, 0], [3, 0, 0], [5, 6, 0], [7, 8, 9], [4, 4, 0]]
    assert lengths["x"].tolist() == [2, 1, 2, 3, 2]
    flat = Collator(ragged="flat").batch(sampled)[0]["x"]
    assert flat.values.tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 4, 4]
    assert [item.tolist() for item in Collator(ragged="list").batch(sampled)[0]["x"]][1] == [3]


def test_layouts_of_equal_length_but_different_storage_are_stacked():
    one = piece({"x": fixed([[1, 2], [5, 6]])}, [0, 2])
    other = piece({"x": variable([np.array([3, 4])])}, [1], number=1)
    assert Collator().batch(batch(one, other, size=3))[0]["x"].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_items_of_different_structure_are_refused_with_their_counts():
    one = piece({"x": fixed([1, 2])}, [0, 2])
    other = piece({"x": fixed([3]), "y": fixed([4])}, [1], number=1)
    with pytest.raises(InvalidArgument) as caught:
        Collator().batch(batch(one, other, size=3))
    for part in ("2 of {'x': *}", "1 of {'x': *, 'y': *}", "columns="):
        assert part in str(caught.value)


def test_items_of_different_dtype_are_refused_but_in_a_list():
    one = piece({"x": fixed(np.array([[1.0], [2.0]], np.float32))}, [0, 2])
    other = piece({"x": fixed(np.array([[3.0]]))}, [1], number=1)
    for ragged in ("error", "pad", "flat"):
        with pytest.raises(InvalidArgument, match=r"different dtypes: 2 float32, 1 float64; .*signature"):
            Collator(ragged=ragged).batch(batch(one, other, size=3))
    listed = Collator(ragged="list").batch(batch(one, other, size=3))[0]["x"]
    assert [item.dtype.name for item in listed] == ["float32", "float64", "float32"]


def test_numbers_of_different_dtype_are_refused_but_in_a_list():
    one = piece({"r": fixed([0, 2])}, [0, 2])
    other = piece({"r": fixed([1.0])}, [1], number=1)
    for ragged in ("error", "pad", "flat"):
        with pytest.raises(InvalidArgument, match=r"\('r',\) .*different dtypes: 2 int64, 1 float64; .*np.float32"):
            Collator(ragged=ragged).batch(batch(one, other, size=3))
    assert Collator(ragged="list").batch(batch(one, other, size=3))[0]["r"] == [0, 1.0, 2]


def test_text_among_numbers_is_refused_by_its_type():
    one = piece({"r": fixed([0])}, [0])
    other = piece({"r": variable(["a"], ())}, [1], number=1)
    with pytest.raises(InvalidArgument, match="1 int64, 1 str"):
        Collator().batch(batch(one, other, size=2))


# -- structure and options --------------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: object
    y: object


@dataclass
class Step:
    x: object
    y: object


def test_structure_names_the_class_that_data_come_back_as():
    columns = Point(fixed([1, 2]), steps([[1], [2, 3]]))
    data, lengths = Collator({"p": Step}, "pad").batch(batch(piece({"p": columns}), size=2))
    assert isinstance(data["p"], Step)
    assert isinstance(lengths["p"], Step)
    assert data["p"].x.tolist() == [1, 2]
    assert lengths["p"].y.tolist() == [1, 2]


def test_a_nest_may_be_one_value():
    assert Collator().batch(batch(piece(fixed([1, 2])), size=2))[0].tolist() == [1, 2]
    assert collated(steps([[1], [2, 3]]), 2, ragged="pad", pad_to=3).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ragged": "truncate"}, "'error', 'pad', 'flat' or 'list'"),
        ({"ragged": "pad", "pad_side": "top"}, "'left' or 'right'"),
        ({"pad_to": 3}, "pad_to: .*ragged='error'; pass ragged='pad'"),
        ({"pad_value": -1}, "pad_value: .*ragged='pad'"),
        ({"pad_value": {"x": 0}, "pad_to": 3}, "pad_value and pad_to: .*ragged='pad'"),
        ({"ragged": "flat", "pad_side": "left"}, "ragged='pad'"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options, message):
    with pytest.raises(InvalidArgument, match=message):
        Collator(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_to": 2}, "3 rows, pad_to is 2"),
        ({"pad_to": 2.5}, "int >= 1"),
        ({"pad_to": {"x": 0}}, "int >= 1"),
        ({"pad_to": {"y": 2}}, r"'y'; there are \('x',\)"),
        ({"pad_value": 0.5}, "does not fit"),
        ({"pad_value": "no"}, "does not fit"),
        ({"pad_value": 2**70}, "does not fit"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(unequal, options, message):
    with pytest.raises(InvalidArgument, match=message):
        collated({"x": unequal}, 3, ragged="pad", **options)


def test_a_pad_value_must_fit_unsigned_and_bool_columns():
    for dtype in (np.uint8, np.bool_):
        with pytest.raises(InvalidArgument, match="does not fit"):
            collated({"x": steps([np.ones(1, dtype), np.ones(2, dtype)])}, 2, ragged="pad", pad_value=-1)


def test_columns_are_names_paths_or_several_of_them():
    assert as_columns(None) is None
    assert as_columns("obs") == [("obs",)]
    assert as_columns(("obs", "image")) == [("obs", "image")]
    assert as_columns(["a", ("b", 0)]) == [("a",), ("b", 0)]
    assert as_columns(iter(["a"])) == [("a",)]
    for wrong in (3, {"a": 1}, [], [3], [("a", 1.5)], [None]):
        with pytest.raises(InvalidArgument, match="column"):
            as_columns(wrong)
