"""Steps of an Insert stream as chunks of DeepMind's protocol."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.tensors import encode_tensor
from reverb_async.compat.writing import write_chunk
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows, decode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import Column


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows of one column, or of all columns of a row, encoded.

    Attributes:
        key: random, as dm-reverb's clients make them.
        message: the serialized ChunkData.
        is_sent: the server has it, on the call that is open.
    """

    key: int
    message: bytes
    is_sent: bool = False

    @classmethod
    def of(cls, tensors: Sequence[bytes], episode: int, first: int, count: int) -> Chunk:
        """Return steps ``[first, first + count)`` of an episode; one serialized TensorProto per column."""
        key = secrets.randbits(64)
        return cls(key, write_chunk(key, episode, (first, first + count - 1), tensors))


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``[offset, offset + length)`` of a chunk's tensor."""

    chunk: Chunk
    offset: int
    length: int
    tensor: int = 0


@dataclass(slots=True)
class _Block:
    """Steps that arrived together."""

    first: int
    stop: int
    columns: list[Column]


class StepChunks:
    """The steps of one column group that the client can still name.

    A chunk holds what the first item that shows it added to the items before: overlapping items share all they can, and
    nobody who samples an item gets rows that it does not show.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        self.specs = tuple(specs)
        self._blocks: list[_Block] = []
        self._encoded: list[dict[int, tuple[Chunk, int]]] = [{} for _ in self.specs]
        """Per column, by step: its chunk and its place there."""

    def add(self, first: int, count: int, columns: list[Column]) -> None:
        """Keep steps ``[first, first + count)``; they may come after later ones, when an item shows them at last."""
        if not count:
            return
        blocks, stop = self._blocks, first + count
        place = bisect_right(blocks, first, key=lambda block: block.first)
        if (place and first < blocks[place - 1].stop) or (place < len(blocks) and blocks[place].first < stop):
            raise InvalidArgument(f"some of the steps {first} to {stop - 1} were sent before")
        blocks.insert(place, _Block(first, stop, columns))

    def find(self, column: int, first: int, length: int, episode: int) -> list[Slice]:
        """Return where the steps ``[first, first + length)`` of a column are found; encodes those that never were.

        Raises:
            InvalidArgument: they were not sent, or are released.
        """
        encoded, slices = self._encoded[column], list[Slice]()
        step, stop = first, first + length
        while step < stop:
            if step not in encoded:
                self._encode(column, step, stop, episode)
            chunk, offset = encoded[step]
            until = step + 1
            while until < stop and encoded.get(until) == (chunk, offset + until - step):
                until += 1
            slices.append(Slice(chunk, offset, until - step))
            step = until
        return slices

    def _encode(self, column: int, first: int, stop: int, episode: int) -> None:
        """Make a chunk of the steps from `first` on that have none, come in one block and have one shape."""
        number = bisect_right(self._blocks, first, key=lambda block: block.first) - 1
        if number < 0 or first >= self._blocks[number].stop:
            raise InvalidArgument(f"an item names step {first}, which was not sent or is released")
        block, spec, encoded = self._blocks[number], self.specs[column], self._encoded[column]
        stop = min(stop, block.stop)
        if spec.is_variable and spec.dtype.itemsize:
            stop = first + 1
        stop = next((step for step in range(first, stop) if step in encoded), stop)
        values = block.columns[column]
        start, end = first - block.first, stop - block.first
        if isinstance(values, VariableRows):
            rows = decode_rows(values.take(np.arange(start, end)), spec)
            arrays = [row for row in rows if isinstance(row, np.ndarray)]
            strings = [row.encode() if isinstance(row, str) else row for row in rows if isinstance(row, str | bytes)]
            tensor = encode_tensor(np.stack(arrays) if arrays else strings)
        else:
            tensor = encode_tensor(values[start:end])
        chunk = Chunk.of([tensor], episode, first, stop - first)
        for step in range(first, stop):
            encoded[step] = (chunk, step - first)

    def release(self, step: int) -> None:
        """Forget the steps before `step`."""
        while self._blocks and self._blocks[0].first < step:
            block = self._blocks[0]
            for released in range(block.first, min(step, block.stop)):
                for encoded in self._encoded:
                    encoded.pop(released, None)
            if block.stop > step:
                rest = step - block.first
                block.columns = [_behind(column, rest) for column in block.columns]
                block.first = step
                return
            del self._blocks[0]

    def chunks(self) -> set[Chunk]:
        """Return the chunks of the steps that can still be named."""
        return {chunk for encoded in self._encoded for chunk, _ in encoded.values()}


def _behind(column: Column, start: int) -> Column:
    return column.take(np.arange(start, len(column))) if isinstance(column, VariableRows) else column[start:]


def row_chunk(row: Sequence[NDArray[np.generic]]) -> Chunk:
    """Return a step of its own, all columns in one chunk, as dm-reverb's `Client.insert` makes it.

    Args:
        row: an array ``[1, *row_shape]`` per column.
    """
    return Chunk.of([encode_tensor(column) for column in row], secrets.randbits(64), 0, 1)
