import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from reverb_async.core.leaf import Leaf
from reverb_async.core.spec import ArraySpec, dtype_from_name
from reverb_async.core.variable import VariableRows, decode_rows, encode_rows
from reverb_async.errors import InvalidArgument

NUMERIC = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "S3", "U2"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2"),
)
TEXT = ArraySpec((), str)
BYTES = ArraySpec((), bytes)
POINTS = ArraySpec((None, 2), np.float32)


def rows_of(data: bytes | list[int], sizes: list[int], shapes: Any) -> VariableRows:
    raw = np.frombuffer(bytes(data), np.uint8)
    return VariableRows(raw, np.array(sizes, np.int64), np.array(shapes, np.int32).reshape(len(sizes), -1))


def text_rows(data: bytes, sizes: list[int]) -> VariableRows:
    return VariableRows(np.frombuffer(data, np.uint8), np.array(sizes, np.int64), np.zeros((len(sizes), 0), np.int32))


def same(got: Leaf, wanted: Leaf) -> bool:
    if isinstance(wanted, str | bytes) or isinstance(got, str | bytes):
        return type(got) is type(wanted) and got == wanted
    return (got.dtype, got.shape, got.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@given(st.data(), st.sampled_from(NUMERIC))
def test_arrays_of_every_dtype_and_shape_come_back(data: st.DataObject, name: str) -> None:
    if name.startswith(("bf", "float8")):
        pytest.importorskip("ml_dtypes")
    dtype = dtype_from_name(name)
    fixed = data.draw(st.lists(st.integers(0, 3) | st.none(), min_size=1, max_size=4), label="shape")
    spec = ArraySpec((*fixed, None), dtype)
    extents = st.tuples(*(st.integers(0, 4) if extent is None else st.just(extent) for extent in spec.shape))
    arrays: list[Leaf] = []
    for shape in data.draw(st.lists(extents, max_size=4), label="shapes"):
        raw = data.draw(nps.arrays(np.uint8, (*shape, dtype.itemsize), elements=st.integers(0, 1)))
        array = np.zeros(shape, dtype)
        if dtype.kind == "U":
            raw[..., np.arange(dtype.itemsize) % 4 > 0] = 0  # code points, not any four bytes
        array.reshape(-1).view(np.uint8)[:] = raw.reshape(-1)
        arrays.append(array)
    rows = encode_rows(arrays, spec)
    rows.validate(spec)
    decoded = decode_rows(rows, spec)
    assert all(same(got, wanted) for got, wanted in zip(decoded, arrays, strict=True))
    for array in decoded:
        assert isinstance(array, np.ndarray)
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.size == 0 or array.ctypes.data % 64 == 0


@given(st.lists(st.text(max_size=20), max_size=6))
def test_text_comes_back(texts: list[str]) -> None:
    rows = encode_rows(texts, TEXT)
    rows.validate(TEXT)
    assert decode_rows(rows, TEXT) == texts


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_come_back(values: list[bytes]) -> None:
    rows = encode_rows(values, BYTES)
    rows.validate(BYTES)
    assert decode_rows(rows, BYTES) == values


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=6), st.data(), st.sampled_from([1, 100]))
def test_taking_rows_is_indexing(values: list[bytes], data: st.DataObject, factor: int) -> None:
    values = [value * factor for value in values]  # large rows are copied in another way than small ones
    indices = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=8))
    taken = encode_rows(values, BYTES).take(np.array(indices, np.int64))
    taken.validate(BYTES)
    assert decode_rows(taken, BYTES) == [values[index] for index in indices]


def test_taking_rows_keeps_their_shapes() -> None:
    arrays: list[Leaf] = [np.full((length, 2), length, np.float32) for length in range(4)]
    taken = encode_rows(arrays, POINTS).take(np.array([3, 0, 3, 1]))
    assert [array.shape for array in decode_rows(taken, POINTS)] == [(3, 2), (0, 2), (3, 2), (1, 2)]  # type: ignore[union-attr]


def test_rows_stand_back_to_back() -> None:
    rows = encode_rows([b"ab", b"", b"cde"], BYTES)
    assert len(rows) == 3
    assert rows.offsets.tolist() == [0, 2, 2, 5]
    assert [part.tobytes() for part in rows.split()] == [b"ab", b"", b"cde"]
    assert rows.shapes.shape == (3, 0)


def test_encoding_copies_and_decoding_too() -> None:
    array = np.zeros((3, 2), np.float32)[::-1]
    rows = encode_rows([array], POINTS)
    array[:] = 1
    (got,) = decode_rows(rows, POINTS)
    assert isinstance(got, np.ndarray)
    got[:] = 2
    assert not rows.data.any()


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (np.zeros((3, 2)), POINTS),
        (np.zeros((3, 3), np.float32), POINTS),
        (np.zeros(2, np.float32), POINTS),
        ("text", POINTS),
        (np.zeros(2), TEXT),
        (b"bytes", TEXT),
        ("text", BYTES),
        ("\ud800", TEXT),
        (np.zeros((0, 2**40), np.float32), ArraySpec((None, None), np.float32)),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_position(leaf: Leaf, spec: ArraySpec) -> None:
    good: dict[ArraySpec, Leaf] = {TEXT: "a", BYTES: b"a", POINTS: np.zeros((1, 2), np.float32)}
    with pytest.raises(InvalidArgument, match="row 1"):
        encode_rows([good.get(spec, np.zeros((1, 1), np.float32)), leaf], spec)


def test_rows_of_text_arrays_need_a_width() -> None:
    with pytest.raises(InvalidArgument, match="fix the width"):
        encode_rows(["a"], ArraySpec((None,), str))


BAD: list[tuple[VariableRows, ArraySpec]] = [
    (rows_of([0] * 8, [8], [[2, 2]]), POINTS),
    (rows_of([0] * 8, [4], [[1, 2]]), POINTS),
    (rows_of([0] * 8, [-8, 16], [[1, 2], [2, 2]]), POINTS),
    (rows_of([0] * 8, [8], [[-1, -2]]), POINTS),
    (rows_of([0] * 12, [12], [[1, 3]]), POINTS),
    (rows_of([0] * 8, [8], [[1, 2, 1]]), POINTS),
    (rows_of([0] * 8, [2**62, 2**62, 2**62, 2**62, 8], [[1, 2]] * 5), POINTS),
    (rows_of([], [0], [[2**30, 2]]), POINTS),
    (rows_of([], [0], [[0, 2**31 - 1, 2**31 - 1]]), ArraySpec((None, None, None), np.uint8)),
    (rows_of([], [0], [[2**16] * 4]), ArraySpec((None,) * 4, np.uint8)),
    (rows_of([1, 2], [2], [[2]]), ArraySpec((None,), bool)),
    (rows_of([255] * 4, [4], [[1]]), ArraySpec((None,), "U1")),
    (text_rows(b"\xff", [1]), TEXT),
    (text_rows("ä".encode(), [1, 1]), TEXT),
    (text_rows(b"ab\xc3", [3]), TEXT),
    (text_rows(b"\xed\xa0\x80", [3]), TEXT),
    (text_rows(b"ab", [1]), BYTES),
    (VariableRows(np.zeros(2), np.array([2]), np.zeros((1, 0), np.int32)), BYTES),  # type: ignore[arg-type]
    (VariableRows(np.zeros((2, 1), np.uint8), np.array([2]), np.zeros((1, 0), np.int32)), BYTES),
    (VariableRows(np.zeros(4, np.uint8)[::2], np.array([2]), np.zeros((1, 0), np.int32)), BYTES),
    (VariableRows(np.zeros(2, np.uint8), np.array([2.0]), np.zeros((1, 0), np.int32)), BYTES),  # type: ignore[arg-type]
    (VariableRows(np.zeros(2, np.uint8), np.array([2]), np.zeros((2, 0), np.int32)), BYTES),
    (VariableRows(b"ab", [2], None), BYTES),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("rows", "spec"), BAD)
def test_rows_that_lie_are_refused(rows: VariableRows, spec: ArraySpec) -> None:
    with pytest.raises(InvalidArgument):
        rows.validate(spec)


small = st.integers(-3, 9) | st.sampled_from([2**31 - 1, -(2**31)])


@given(st.data(), st.sampled_from([TEXT, BYTES, POINTS, ArraySpec((None,), "U2"), ArraySpec((None, None), bool)]))
def test_whatever_passes_validation_decodes(data: st.DataObject, spec: ArraySpec) -> None:
    raw = data.draw(st.binary(max_size=24))
    n = data.draw(st.integers(0, 3))
    rank = data.draw(st.sampled_from([len(spec.shape)] * 4 + [0, 1, 3]))
    sizes = data.draw(nps.arrays(np.int64, n, elements=st.integers(-1, 24) | st.integers(-(2**63), 2**63 - 1)))
    shapes = data.draw(nps.arrays(np.int32, (n, rank), elements=small))
    rows = VariableRows(np.frombuffer(raw, np.uint8), sizes, shapes)
    try:
        rows.validate(spec)
    except InvalidArgument:
        return
    for value in decode_rows(rows, spec):
        assert isinstance(value, np.ndarray | str | bytes)


@given(st.data())
def test_text_is_accepted_exactly_when_each_row_is_utf8(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.text(max_size=3).map(str.encode) | st.binary(max_size=2), max_size=5))
    joined = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=4)))
    bounds = [0, *cuts, len(joined)]
    parts = [joined[start:end] for start, end in itertools.pairwise(bounds)]
    rows = text_rows(joined, [len(part) for part in parts])
    try:
        wanted = [part.decode() for part in parts]
    except UnicodeDecodeError:
        with pytest.raises(InvalidArgument, match="UTF-8"):
            rows.validate(TEXT)
    else:
        rows.validate(TEXT)
        assert decode_rows(rows, TEXT) == wanted
