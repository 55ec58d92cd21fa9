"""Chunks and items laid out as protobuf's own libraries do: fields in order, nothing repeated or unknown.

Most are like one before and need only be compared with it. Regular expressions take the others apart at a third of the
cost of going from field to field. They know nothing of lengths: these are compared with what was matched, and whatever
differs is left to the general reader.
"""

from __future__ import annotations

import re
from typing import Any

from reverb_async.compat.limits import MAX_COLUMNS, MAX_SLICES
from reverb_async.compat.messages import ChunkView, ColumnView, ItemView, Shape, Slice, shape_of
from reverb_async.compat.scanning import Data, double, numbers, read_varint, text
from reverb_async.compat.templates import MAX_TEMPLATE_BYTES, Templates
from reverb_async.compat.tensors import TensorHead, read_head

_MAX_REMEMBERED = 4096


def _pattern(layout: bytes) -> re.Pattern[bytes]:
    """Return a pattern in which ``<n>`` stands for a number of up to 10 bytes, ``<step>`` for one of up to 5."""
    for name, more in ((b"<n>", b"9"), (b"<step>", b"4"), (b" ", b"")):
        layout = layout.replace(name, rb"[\x80-\xff]{0,%b}[\x00-\x7f]" % more if more else b"")
    return re.compile(layout, re.DOTALL)


_CHUNK = _pattern(
    rb"\x08(<n>) \x12([\x00-\x7f]) ((?:\x08(<n>))? (?:\x10(<step>))? (?:\x18(<step>))?) (?:\x20[\x00\x01])? \x2a(<n>)"
)
_TENSOR = _pattern(rb"\x0a(<n>) (\x08[\x01-\x7f] \x12[\x00-\x7f] (?:\x12[\x00-\x7f](?:\x08<n>)?){1,9}) \x22(<n>)")
_CHUNK_END = _pattern(rb"(?:\x30<n>)? (?:\x38<n>)?")
_ITEM = _pattern(rb"\x08(<n>) \x12([\x00-\x7f])")
_ITEM_END = _pattern(rb"(?:\x29(.{8}))? (?:\x30(<n>))? (?:\x3a([\x00-\x7f])((?:\x08<n>)?(?:\x10<n>)?))? \x42(<n>)")
_SLICE = _pattern(rb"\x0a([\x00-\x7f]) (\x08(<n>) (?:\x10(<n>))? (?:\x18(<n>))? (?:\x20(<n>))?)")

_COLUMN = _pattern(
    rb"\x0a([\x00-\x7f]) \x0a([\x00-\x7f]) (\x08(<n>) (?:\x10(<n>))? (?:\x18(<n>))? (?:\x20(<n>))?) (\x10\x01)?"
)
_SQUEEZE = b"\x10\x01"
_MAX_COLUMN_BYTES = 1 << 16

_LONGEST_NUMBER = 10
_GOES_ON = int.from_bytes(b"\x80" * MAX_TEMPLATE_BYTES, "little")
"""The bit of each byte of a number that is not its last."""

_new = tuple.__new__
"""What named tuples are made with, in a fourth of the time."""

_names: dict[bytes, str] = {}
_heads: dict[bytes, TensorHead] = {}

_chunks: Templates[tuple[TensorHead, ...]] = Templates()
"""Chunks by length and whether their keys have ten bytes. They differ in keys, steps, and what is in their tensors."""

_trajectories: Templates[tuple[list[int] | None, Shape]] = Templates()
"""Trajectories by length and the bytes that are no number's last; they differ in the keys of their slices.

What is shown is where each slice's key occurs first, if some are the same, and the shape.
"""


def match_chunk(data: Data, start: int, stop: int) -> ChunkView | None:
    """Return the `ChunkData` in ``data[start:stop]`` if it is laid out as usual.

    Raises:
        InvalidArgument: it is, but a number or a tensor's head is not sound.
    """
    raw, size = data[start:stop], stop - start
    if not _LONGEST_NUMBER < size <= MAX_TEMPLATE_BYTES:
        found = _match_chunk(raw)
        if found is None:
            return None
        (key, episode, *_), _, heads = found
        return ChunkView(numbers[bytes(raw[key])], numbers[bytes(raw[episode])], raw, heads)
    raw = bytes(raw)
    bits = int.from_bytes(raw, "little")
    where = size, raw[_LONGEST_NUMBER - 1] & 0x80
    for mask, value, places, heads in _chunks.find(where, ()):
        if bits & mask == value:
            return _new(ChunkView, (numbers[raw[places[0]]], numbers[raw[places[1]]], raw, heads))
    found = _match_chunk(raw)
    if found is None:
        return None
    varying, contents, heads = found
    _chunks.add(where, raw, varying, contents, heads)
    return ChunkView(numbers[raw[varying[0]]], numbers[raw[varying[1]]], raw, heads)


def _match_chunk(raw: Data) -> tuple[list[slice], list[slice], tuple[TensorHead, ...]] | None:
    """Return where a chunk has its key, episode, first and last step, and its tensors' content; and their heads."""
    match = _CHUNK.match(raw)
    if match is None or len(match[3]) != match[2][0]:
        return None
    places = [slice(*match.span(group)) if match[group] else slice(0, 0) for group in (1, 4, 5, 6)]
    at, stop = match.end(), len(raw)
    data_stop = at + numbers[match[7]]
    if data_stop > stop:
        return None
    heads: list[TensorHead] = []
    contents: list[slice] = []
    while at < data_stop or not heads:
        match = _TENSOR.match(raw, at, data_stop)
        if match is None or len(heads) == MAX_COLUMNS:
            return None
        tensor_size, head, content_size = match.groups()
        at, begin = match.start(2) + numbers[tensor_size], match.end()
        if at != begin + numbers[content_size] or head[3] != len(head) - 4:
            return None
        known = _heads.get(head)
        if known is None:
            known = _remember(_heads, head, read_head(head, 0, len(head)))
        heads.append(known)
        contents.append(slice(begin, at))
    if at != data_stop or _CHUNK_END.fullmatch(raw, at, stop) is None:
        return None
    return places, contents, tuple(heads)


def match_item(data: Data, start: int, stop: int) -> ItemView | None:
    """Return the `PrioritizedItem` in ``data[start:stop]`` if it is laid out as usual.

    Raises:
        InvalidArgument: it is, but a number is not sound, or the table's name is not.
    """
    item = bytes(data[start:stop])
    match = _ITEM.match(item)
    if match is None:
        return None
    key, name_size = match.groups()
    at = match.end()
    name_stop = at + name_size[0]
    match = _ITEM_END.match(item, name_stop)
    if match is None:
        return None
    priority, times_sampled, time_size, time, size = match.groups()
    if (time_size is not None and len(time) != time_size[0]) or numbers[times_sampled] >> 31:
        return None
    trajectory = item[match.end() :]
    if numbers[size] != len(trajectory):
        return None
    shown = _match_trajectory(trajectory)
    if shown is None:
        return None
    name = item[at:name_stop]
    table = _names.get(name)
    if table is None:
        table = _remember(_names, name, text(name, 0, len(name), "PrioritizedItem.table"))
    times = 0 if times_sampled is None else numbers[times_sampled]
    return _new(
        ItemView, (numbers[key], table, 0.0 if priority is None else double(priority, 0), times, trajectory, *shown)
    )


def _match_trajectory(trajectory: bytes) -> tuple[Shape, list[int]] | None:
    """Return what a `FlatTrajectory` shows if it is laid out as usual; at once if only its keys are new."""
    size = len(trajectory)
    bits = int.from_bytes(trajectory, "little") if size <= MAX_TEMPLATE_BYTES else 0
    where = size, bits & _GOES_ON
    for mask, value, places, (same, shape) in _trajectories.find(where, ()):
        if bits & mask == value:
            raw = [*map(trajectory.__getitem__, places)]
            distinct = dict.fromkeys(raw)
            if same == _same(raw, len(distinct)):
                keys = [*map(numbers.__getitem__, distinct)]
                if len(set(keys)) == len(keys):  # There may be several ways to write a number.
                    return shape, keys
    key_places: list[slice] = []
    columns = _match_single_slices(trajectory, key_places) or _match_columns(trajectory, key_places)
    if columns is None:
        return None
    shape, keys = shape_of(columns)
    if size <= MAX_TEMPLATE_BYTES:
        raw = [trajectory[place] for place in key_places]
        distinct = dict.fromkeys(raw)
        if len(distinct) == len(keys):
            _trajectories.add(where, trajectory, key_places, (), (_same(raw, len(distinct)), shape))
    return shape, keys


def _same(keys: list[bytes], num_different: int) -> list[int] | None:
    """Return for each of some keys where it occurs first; None if they are all different."""
    return None if num_different == len(keys) else [*map(keys.index, keys)]


def _match_single_slices(data: bytes, places: list[slice]) -> list[ColumnView] | None:
    """Return the columns of a short trajectory if each shows one slice: so do all of items of one step.

    Where the slices' keys are goes to `places`.
    """
    columns: list[ColumnView] = []
    if len(data) > _MAX_COLUMN_BYTES:
        return None
    at = 0
    for size, slice_size, fields, key, offset, length, index, squeeze in _COLUMN.findall(data):
        shown = numbers[key], numbers[offset], numbers[length], numbers[index]
        nbytes = len(fields)
        more = 2 + nbytes + len(squeeze)
        if slice_size[0] != nbytes or size[0] != more or (shown[1] | shown[2] | shown[3]) >> 31:
            return None
        columns.append(ColumnView([shown], squeeze != b""))
        places.append(slice(at + 5, at + 5 + len(key)))
        at += 2 + more
    return columns if at == len(data) and len(columns) <= MAX_COLUMNS else None  # else there is something between


def _match_columns(data: bytes, places: list[slice]) -> list[ColumnView] | None:
    columns: list[ColumnView] = []
    places.clear()
    at, stop, room = 0, len(data), MAX_SLICES
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
        slices = _match_slices(data, at, end - 2 if squeeze else end, places)
        if slices is None or len(slices) > room:
            return None
        room -= len(slices)
        columns.append(ColumnView(slices, squeeze))
        at = end
    return columns


def _match_slices(data: bytes, at: int, stop: int, places: list[slice]) -> list[Slice] | None:
    slices: list[Slice] = []
    for size, fields, key, offset, length, index in _SLICE.findall(data, at, stop):
        slices.append((numbers[key], numbers[offset], numbers[length], numbers[index]))
        if len(fields) != size[0] or (slices[-1][1] | slices[-1][2] | slices[-1][3]) >> 31:
            return None
        places.append(slice(at + 3, at + 3 + len(key)))
        at += 2 + len(fields)
    return slices if at == stop else None  # otherwise there is something between them


def _remember(known: dict[Any, Any], raw: object, value: Any) -> Any:
    if len(known) >= _MAX_REMEMBERED:
        known.clear()
    known[raw] = value
    return value
