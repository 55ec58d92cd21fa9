from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.records import RecordReader, RecordWriter


def write(path: Path, records: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, 100 * at).astype(np.uint8) for at in range(records)]
    writer = RecordWriter(FileSystem(), path, "things")
    for at, array in enumerate(arrays):
        writer.add({"kind": "thing", "at": at}, [array, np.zeros(3, np.float64)])
    writer.finish()
    return arrays


def test_records_come_back_as_they_were_written(tmp_path):
    arrays = write(tmp_path / "file")
    records = list(RecordReader(tmp_path / "file", "things"))
    assert [record.header["at"] for record in records] == [0, 1, 2]
    for record, array in zip(records, arrays, strict=True):
        assert record.buffers[0].tobytes() == array.tobytes()
        assert record.buffers[1].view(np.float64).tolist() == [0, 0, 0]
        assert all(buffer.ctypes.data % 64 == 0 for buffer in record.buffers)


def test_single_records_can_be_read_where_they_stand(tmp_path):
    write(tmp_path / "file")
    reader = RecordReader(tmp_path / "file", "things")
    offsets = [record.offset for record in reader]
    assert [record.header["at"] for record in reader.at(offsets[::-1])] == [2, 1, 0]


def test_what_a_manifest_says_of_a_file_is_compared(tmp_path):
    writer = RecordWriter(FileSystem(), tmp_path / "file", "things")
    facts = writer.finish()
    assert RecordReader(tmp_path / "file", "things", facts).verify() == 0
    (tmp_path / "other").mkdir()
    writer = RecordWriter(FileSystem(), tmp_path / "other" / "file", "things")
    writer.add({"kind": "thing"}, [])
    other = writer.finish()
    with pytest.raises(Damage, match=f"expected {other.nbytes} bytes, found {facts.nbytes} bytes"):
        RecordReader(tmp_path / "file", "things", other).verify()


def test_a_whole_file_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "file")
    with pytest.raises(Damage, match="expected a file of rows, found one of 'things'"):
        RecordReader(tmp_path / "file", "rows").verify()


@pytest.mark.parametrize("place", [0, 3, 5, 9, 17, 30, 63, 64, 128, 200])
def test_a_changed_byte_is_named_with_file_and_offset(tmp_path, place):
    path = tmp_path / "file"
    write(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(Damage) as caught:
        RecordReader(path, "things").verify()
    assert caught.value.path == path
    assert caught.value.offset <= place < caught.value.offset + 256
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "found" in str(caught.value)


def test_records_that_changed_places_are_noticed(tmp_path):
    path = tmp_path / "file"
    writer = RecordWriter(FileSystem(), path, "things")
    for at in range(2):
        writer.add({"kind": "thing", "at": at}, [])
    writer.finish()
    first, second = (record.offset for record in RecordReader(path, "things"))
    content = bytearray(path.read_bytes())
    size = second - first
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    path.write_bytes(content)
    with pytest.raises(Damage, match="digest"):
        RecordReader(path, "things").verify()


@pytest.mark.parametrize("length", [2**63, 2**40, 128, 0, 100])
def test_a_length_that_cannot_be_is_refused_before_memory_is_taken(tmp_path, length):
    path = tmp_path / "file"
    write(path)
    content = bytearray(path.read_bytes())
    content[8:16] = length.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(Damage):
        RecordReader(path, "things").verify()


def test_many_small_and_empty_buffers_are_written_whole(tmp_path):
    path = tmp_path / "file"
    writer = RecordWriter(FileSystem(), path, "things")
    arrays = [np.full(at % 5, at % 251, np.uint8) for at in range(3000)]
    writer.add({"kind": "thing"}, arrays)
    facts = writer.finish()
    (record,) = RecordReader(path, "things", facts)
    assert [buffer.tolist() for buffer in record.buffers] == [array.tolist() for array in arrays]


def test_short_writes_are_continued(tmp_path):
    class Slow(FileSystem):
        def write_some(self, file, parts):
            return os.write(file, parts[0][:7])

    writer = RecordWriter(Slow(), tmp_path / "file", "things")
    writer.add({"kind": "thing"}, [np.arange(20)])
    writer.finish()
    (record,) = RecordReader(tmp_path / "file", "things")
    assert record.buffers[0].view(np.int64).tolist() == list(range(20))
