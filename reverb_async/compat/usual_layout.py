"""Chunks and items laid out as protobuf's own libraries do: fields in order, nothing repeated or unknown.

A regular expression takes such a message apart at a third of the cost of going from field to field. It knows nothing of
lengths: they are compared with what was matched, and whatever differs is left to the general reader.
"""

from __future__ import annotations

import re
from typing import Any

from reverb_async.compat.limits import MAX_COLUMNS, MAX_SLICES
from reverb_async.compat.messages import ChunkView, ColumnView, ItemView, Shape, Slice, shape_of
from reverb_async.compat.scanning import double, numbers, read_varint, text
from reverb_async.compat.tensors import TensorHead, read_head

_MAX_REMEMBERED = 4096


def _pattern(layout: bytes) -> re.Pattern[bytes]:
    """Return a pattern in which ``<n>`` stands for a number of up to 10 bytes."""
    return re.compile(layout.replace(b"<n>", rb"[\x80-\xff]{0,9}[\x00-\x7f]").replace(b" ", b""), re.DOTALL)


_TENSOR_FIELDS = rb"\x0a(<n>) (\x08[\x01-\x7f] \x12[\x00-\x7f] (?:\x12[\x00-\x7f](?:\x08<n>)?){1,9}) \x22(<n>)"
_CHUNK = _pattern(
    rb"\x08(<n>) (\x12[\x00-\x7f] (?:\x08<n>)? (?:\x10<n>)? (?:\x18<n>)?) (?:\x20([\x00\x01]))? \x2a(<n>)"
    + _TENSOR_FIELDS
)
_STEPS = _pattern(rb"\x12([\x00-\x7f]) ((?:\x08(<n>))? (?:\x10(<n>))? (?:\x18(<n>))?)")
_TENSOR = _pattern(_TENSOR_FIELDS)
_CHUNK_END = _pattern(rb"(?:\x30<n>)? (?:\x38<n>)?")
_ITEM = _pattern(rb"\x08(<n>) \x12([\x00-\x7f])")
_ITEM_END = _pattern(rb"(?:\x29(.{8}))? (?:\x30(<n>))? (?:\x3a([\x00-\x7f])((?:\x08<n>)?(?:\x10<n>)?))? \x42(<n>)")
_SLICE = _pattern(rb"\x0a([\x00-\x7f]) (\x08(<n>) (?:\x10(<n>))? (?:\x18(<n>))? (?:\x20(<n>))?)")

_COLUMN = _pattern(
    rb"\x0a([\x00-\x7f]) \x0a([\x00-\x7f]) (\x08(<n>) (?:\x10(<n>))? (?:\x18(<n>))? (?:\x20(<n>))?) (\x10\x01)?"
)
_SQUEEZE = b"\x10\x01"
_MAX_COLUMN_BYTES = 1 << 16

_heads: dict[bytes, TensorHead] = {}
_steps: dict[bytes, tuple[int, int, int]] = {}
_names: dict[bytes, str] = {}

_LONG_NUMBERS = re.compile(rb"([\x80-\xff]{8,9}[\x00-\x7f])")
_FIRST_LONG = 1 << 56
"""Keys from here on, as random ones are, take nine bytes or ten; nothing else in a trajectory does."""
_MAX_REMEMBERED_BYTES = 1 << 10

_shapes: dict[object, Shape] = {}
"""By all that a trajectory is but for its keys, and by how long and which of them are equal."""


def match_chunk(data: memoryview, start: int, stop: int) -> ChunkView | None:
    """Return the `ChunkData` in ``data[start:stop]`` if it is laid out as usual.

    Raises:
        InvalidArgument: it is, but a number or a tensor's head is not sound.
    """
    match = _CHUNK.match(data, start, stop)
    if match is None:
        return None
    key, steps, delta, size, tensor_size, head, content_size = match.groups()
    known_steps = _steps.get(steps)
    if known_steps is None:
        known_steps = _read_steps(steps)
        if known_steps is None:
            return None
    at = match.start(5)
    data_stop = at - 1 + numbers[size]
    if data_stop > stop:
        return None
    heads: list[TensorHead] = []
    while True:
        end = match.end()
        at = end - len(content_size) - 1 - len(head) + numbers[tensor_size]
        if at != end + numbers[content_size] or head[3] != len(head) - 4:
            return None
        known = _heads.get(head)
        if known is None:
            known = _remember(_heads, head, read_head(head, 0, len(head)))
        heads.append(known)
        if at >= data_stop:
            break
        match = _TENSOR.match(data, at, data_stop)
        if match is None or len(heads) == MAX_COLUMNS:
            return None
        tensor_size, head, content_size = match.groups()
    if at != data_stop or (at != stop and _CHUNK_END.fullmatch(data, at, stop) is None):
        return None
    episode_id, first, last = known_steps
    return ChunkView(numbers[key], episode_id, first, last, data[start:stop], tuple(heads), delta == b"\x01")


def _read_steps(raw: bytes) -> tuple[int, int, int] | None:
    """Return what a `SequenceRange` says, tag and length in front of it; None if it is none as usual."""
    match = _STEPS.fullmatch(raw)
    if match is None:
        return None
    size, steps, episode_id, first, last = match.groups()
    if len(steps) != size[0] or (numbers[first] | numbers[last]) >> 31:
        return None
    known: tuple[int, int, int] = _remember(_steps, raw, (numbers[episode_id], numbers[first], numbers[last]))
    return known


def match_item(data: memoryview, start: int, stop: int) -> ItemView | None:
    """Return the `PrioritizedItem` in ``data[start:stop]`` if it is laid out as usual.

    Raises:
        InvalidArgument: it is, but a number is not sound, or the table's name is not.
    """
    match = _ITEM.match(data, start, stop)
    if match is None:
        return None
    key, name_size = match.groups()
    at = match.end()
    name_stop = at + name_size[0]
    match = _ITEM_END.match(data, name_stop, stop)
    if match is None:
        return None
    priority, times_sampled, time_size, time, size = match.groups()
    begin = match.end()
    if time_size is not None and len(time) != time_size[0]:
        return None
    if begin + numbers[size] != stop or numbers[times_sampled] >> 31:
        return None
    trajectory = bytes(data[begin:stop])
    shown = _match_trajectory(data, begin, stop, trajectory)
    if shown is None:
        return None
    name = bytes(data[at:name_stop])
    table = _names.get(name)
    if table is None:
        table = _remember(_names, name, text(data, at, name_stop, "PrioritizedItem.table"))
    return ItemView(
        numbers[key],
        table,
        0.0 if priority is None else double(priority, 0),
        numbers[times_sampled],
        trajectory,
        *shown,
    )


def _match_trajectory(data: memoryview, start: int, stop: int, trajectory: bytes) -> tuple[Shape, list[int]] | None:
    """Return what a `FlatTrajectory` shows if it is laid out as usual; at once if only its keys are new."""
    known: object = None
    raw: list[bytes] = []
    distinct: dict[bytes, int] = {}
    if len(trajectory) <= _MAX_REMEMBERED_BYTES:
        parts = _LONG_NUMBERS.split(trajectory)
        raw = parts[1::2]
        for each in raw:
            distinct.setdefault(each, len(distinct))
        order = len(distinct) if len(distinct) in (1, len(raw)) else tuple([distinct[each] for each in raw])
        known = (*parts[::2], *map(len, raw), order)
        shape = _shapes.get(known)
        if shape is not None:
            keys = [numbers[each] for each in distinct]
            if len(set(keys)) == len(keys):  # There may be several ways to write a number.
                return shape, keys
    columns = _match_single_slices(data, start, stop) or _match_columns(data, start, stop)
    if columns is None:
        return None
    shape, keys = shape_of(columns)
    if keys and min(keys) >= _FIRST_LONG and len(keys) == len(distinct):
        shown = [part[0] for column in columns for part in column.slices]
        if shown == [numbers[each] for each in raw]:
            _remember(_shapes, known, shape)
    return shape, keys


def _match_single_slices(data: memoryview, at: int, stop: int) -> list[ColumnView] | None:
    """Return the columns of a short trajectory if each shows one slice: so do all of items of one step."""
    columns: list[ColumnView] = []
    if stop - at > _MAX_COLUMN_BYTES:
        return None
    for size, slice_size, fields, key, offset, length, index, squeeze in _COLUMN.findall(data, at, stop):
        shown = numbers[key], numbers[offset], numbers[length], numbers[index]
        nbytes = len(fields)
        more = 2 + nbytes + len(squeeze)
        if slice_size[0] != nbytes or size[0] != more or (shown[1] | shown[2] | shown[3]) >> 31:
            return None
        columns.append(ColumnView([shown], squeeze != b""))
        at += 2 + more
    return columns if at == stop and len(columns) <= MAX_COLUMNS else None  # otherwise there is something between


def _match_columns(data: memoryview, at: int, stop: int) -> list[ColumnView] | None:
    columns: list[ColumnView] = []
    room = MAX_SLICES
    while at < stop:
        if data[at] != 0x0A or at + 2 > stop or len(columns) == MAX_COLUMNS:
            return None
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            size, at = read_varint(data, at - 1, stop, "FlatTrajectory.columns")
        end = at + size
        if end > stop or end - at > _MAX_COLUMN_BYTES:
            return None
        squeeze = data[end - 2 : end] == _SQUEEZE
        slices = _match_slices(data, at, end - 2 if squeeze else end)
        if slices is None or len(slices) > room:
            return None
        room -= len(slices)
        columns.append(ColumnView(slices, squeeze))
        at = end
    return columns


def _match_slices(data: memoryview, at: int, stop: int) -> list[Slice] | None:
    slices: list[Slice] = []
    for size, fields, key, offset, length, index in _SLICE.findall(data, at, stop):
        slices.append((numbers[key], numbers[offset], numbers[length], numbers[index]))
        if len(fields) != size[0] or (slices[-1][1] | slices[-1][2] | slices[-1][3]) >> 31:
            return None
        at += 2 + len(fields)
    return slices if at == stop else None  # otherwise there is something between them


def _remember(known: dict[Any, Any], raw: object, value: Any) -> Any:
    if len(known) >= _MAX_REMEMBERED:
        known.clear()
    known[raw] = value
    return value
