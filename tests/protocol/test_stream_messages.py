"""Every stream message can be read back, from this version's bytes and from old ones."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_messages import GOLDEN, MESSAGES, OBS, RECORDS, TEXT

from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows, decode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import InsertRequestReader, InsertResponse, take_column
from reverb_async.protocol.message import Message
from reverb_async.protocol.rows import RecordFormat
from reverb_async.protocol.sampling import SampleRequest, SampleResponseReader
from reverb_async.protocol.updating import MAX_CALLS, UpdateRequest, UpdateResponse, pack, unpack
from reverb_async.wire.codec import decode, encode


def same(got: object, expected: object) -> bool:
    """Compare messages field by field, arrays by value."""
    if isinstance(expected, np.ndarray):
        assert isinstance(got, np.ndarray)
        return got.dtype == expected.dtype and np.array_equal(got, expected, equal_nan=expected.dtype.kind == "f")
    if isinstance(expected, VariableRows):
        return all(same(getattr(got, name), getattr(expected, name)) for name in ("data", "sizes", "shapes"))
    if isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(same, got, expected))
    if hasattr(expected, "__dataclass_fields__"):
        return all(same(getattr(got, name), getattr(expected, name)) for name in expected.__dataclass_fields__)
    return got == expected


@pytest.fixture(params=["in process", "over the wire", "as written once"])
def carried(request):
    """Carry a message from its sender to its receiver."""

    def carry(name: str) -> Message:
        if request.param == "in process":
            return MESSAGES[name].to_message()
        golden = (GOLDEN / f"{name}.bin").read_bytes()
        if request.param == "as written once":
            return decode(golden)
        return decode(encode(MESSAGES[name].to_message()).join(), owned=True)

    return carry


def test_an_insert_request(carried):
    expected, reader = MESSAGES["insert_request"], InsertRequestReader(carried("insert_request"))
    assert reader.session() == expected.session
    assert same(reader.groups(), expected.groups)
    assert same(reader.layouts(), expected.layouts)
    (steps,) = reader.steps()
    assert (steps.group, steps.first, steps.count) == (0, 5, 3)
    columns = [take_column(reader.buffers, spec, steps.count) for spec in expected.groups[0].columns]
    assert same(columns, expected.steps[0].columns)
    assert same(reader.items(), expected.items)
    assert reader.release() == expected.release
    assert reader.cancel() == expected.cancel


def test_rows_as_records(carried):
    reader = InsertRequestReader(carried("insert_rows"))
    rows = reader.rows()
    assert same(rows, MESSAGES["insert_rows"].rows)
    assert same(np.frombuffer(rows[0].records, RECORDS.dtype)["2"], np.array([[-1, 1], [2, 3]], np.int16))


def test_records_are_laid_out_like_a_c_struct():
    offsets = [RECORDS.dtype.fields[name][1] for name in RECORDS.dtype.names]
    assert offsets == [0, 16, 32, 48, 50]
    assert RECORDS.dtype.itemsize == 56
    assert RECORDS.unsafe == ("1",)


def test_long_and_variable_rows_do_not_come_as_records():
    for specs in ([ArraySpec((4096,), np.uint8)], [ArraySpec((None,), np.uint8)], [ArraySpec((0,), np.uint8)], [TEXT]):
        assert RecordFormat.of(specs, 1) is None
    assert RecordFormat.of([OBS], 256) is None
    assert RecordFormat.of([OBS], 255) is not None


def test_an_insert_response(carried):
    assert same(InsertResponse.from_message(carried("insert_response")), MESSAGES["insert_response"])


def test_a_sample_request(carried):
    assert same(SampleRequest.from_message(carried("sample_request")), MESSAGES["sample_request"])


def test_a_sample_response(carried):
    expected = MESSAGES["sample_response"]
    got = SampleResponseReader().read(carried("sample_response"))
    assert same(got.batches, expected.batches)
    assert same(got.failed, expected.failed)
    assert got.waiting == expected.waiting


def test_a_sample_request_for_several_batches_per_message(carried):
    assert same(SampleRequest.from_message(carried("sample_request_together")), MESSAGES["sample_request_together"])


def test_a_sample_response_with_several_batches_in_one_buffer(carried):
    batches = SampleResponseReader().read(carried("sample_response_packed")).batches
    assert [(batch.seq, len(batch.keys), batch.rate_limited) for batch in batches] == [
        (1, 3, True),
        (2, 3, False),
        (3, 2, False),
        (4, 2, False),
    ]
    even, second, uneven, last = (batch.pieces[0] for batch in batches)
    assert decode_rows(second.columns[0], even.layout.leaves[0][2]) == ["d", "e", "f"]
    assert second.columns[1].tolist() == np.arange(12, 24).reshape(3, 4).tolist()
    assert uneven.lengths[0] == 1
    assert last.lengths[1].tolist() == [2, 2]
    assert last.columns[1].tolist() == np.arange(16, 32).reshape(4, 4).tolist()
    assert decode_rows(last.columns[0], even.layout.leaves[0][2]) == ["i", "j"]
    for number, batch in enumerate(batches):
        info = (batch.keys, batch.probabilities, batch.priorities, batch.times_sampled, batch.table_sizes)
        assert [array.tolist() for array in info] == [[at] * len(batch.keys) for at in (1, 2, 3, 4, 5)], number


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({1: 0}, "1 to 256 batches"),
        ({1: 257}, "1 to 256 batches"),
        ({1: 2**40}, "1 to 256 batches"),
        ({2: 65_537}, "1 to 65536 items"),
        ({1: 6, 2: 2}, "cannot be made of pieces"),
        ({4: [[3, 6, True, [1]]]}, "cannot be made of pieces"),
        ({4: [[3, 3, False, [1]], [3, 3, False, [1]]]}, "cannot be made of pieces"),
        ({4: [[9, 6, False, [1]]]}, "not declared"),
        ({4: [[[], 6, False, [1]]]}, "not declared"),
        ({4: [[3, 6, False, [1, 1]]]}, "1 views"),
        ({4: [[3, 6, False, [2]]]}, "the buffer has"),
        ({4: [[3, 6, False, [-1]]]}, "the buffer has|rows"),
        ({4: [[3, 6, False, [-2]]]}, "rows"),
        ({4: [[3, 6, False, [2**32]]]}, "rows"),
        ({4: [[3, 6, False, [True]]]}, "rows"),
        ({1: 1, 2: 6, 4: [[3, 3, True, [1]], [3, 3, True, [1]]]}, "the buffer has|positions"),
        ({1: 1, 2: 6, 4: [[3, 3, True, [1]], [3, 3, False, [1]]]}, "cannot be made of pieces"),
        ({3: 1, 4: 7}, "must be a list"),
    ],
)
def test_an_entry_that_promises_what_its_buffer_has_not_is_refused(change, complaint):
    message = MESSAGES["sample_response_packed"].to_message()
    for at, value in change.items():
        message.header["packed"][0][at] = value
    with pytest.raises(InvalidArgument, match=complaint):
        SampleResponseReader().read(message)


def test_layouts_that_contradict_themselves_are_refused():
    message = MESSAGES["sample_response_packed"].to_message()
    message.header["layouts"].append(message.header["layouts"][0])
    with pytest.raises(InvalidArgument, match="declared twice"):
        SampleResponseReader().read(message)
    message = MESSAGES["sample_response_packed"].to_message()
    message.header["layouts"][0][2] = 0
    with pytest.raises(InvalidArgument, match="0 views"):
        SampleResponseReader().read(message)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.one_of(st.integers(-2, 300), st.just(2**63), st.booleans(), st.none(), st.binary(max_size=2))
            | st.lists(
                st.tuples(
                    st.sampled_from([2, 3, 9]),
                    st.integers(-1, 8),
                    st.booleans(),
                    st.lists(st.integers(-2, 3), max_size=3),
                ).map(list),
                max_size=2,
            ),
        ),
        max_size=3,
    ),
    st.integers(0, 2),
    st.binary(max_size=64),
)
def test_any_entry_is_read_or_refused(changes, entry, noise):
    message = MESSAGES["sample_response_packed"].to_message()
    entry %= 2
    for at, value in changes:
        message.header["packed"][entry][at] = value
    message.buffers = [buffer.copy() for buffer in message.buffers]
    raw = message.buffers[4 * entry].reshape(-1).view(np.uint8)  # an entry has one buffer, and three of its texts
    raw[200 : 200 + len(noise)] = np.frombuffer(noise, np.uint8)
    with contextlib.suppress(InvalidArgument):
        for batch in SampleResponseReader().read(message).batches:
            assert len(batch.keys) == sum(
                len(batch.keys) if piece.positions is None else len(piece.positions) for piece in batch.pieces
            )


def test_an_update_request(carried):
    assert same(unpack(carried("update_request")), [MESSAGES["update_request"]])


def test_an_update_response(carried):
    assert same(UpdateResponse.from_message(carried("update_response")), MESSAGES["update_response"])


@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.text(max_size=3), st.integers(0, 3), st.integers(0, 2)),
        min_size=1,
        max_size=5,
    )
)
def test_several_update_requests_travel_in_one_message(calls):
    requests = [
        UpdateRequest(
            seq, table, np.arange(updates, dtype=np.uint64), np.arange(updates) / 2, np.arange(deletes, dtype=np.uint64)
        )
        for seq, table, updates, deletes in calls
    ]
    assert same(unpack(decode(encode(pack(requests)).join(), owned=True)), requests)


def test_countless_update_requests_in_one_message_are_refused():
    none = np.zeros(0, np.uint64)
    with pytest.raises(InvalidArgument, match=f"{MAX_CALLS + 1} calls; at most {MAX_CALLS}"):
        unpack(pack([UpdateRequest(1, "t", none, np.zeros(0), none)] * (MAX_CALLS + 1)))


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.bin")} == MESSAGES.keys()


def test_readers_ignore_keys_they_do_not_know(carried):
    message = carried("update_request")
    message.header["colour"] = "green"
    assert same(unpack(message), [MESSAGES["update_request"]])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(
    [
        *("session", "groups", "layouts", "steps", "items", "rows", "release", "cancel"),
        *("applied_through", "applied", "acks", "refused", "waiting"),
        *(
            "subscribe",
            "credits",
            "consumed",
            "withdraw",
            "updates",
            "end",
            "batches",
            "packed",
            "failed",
            "seq",
            "table",
            "deletes",
            "more",
        ),
    ]
)


@given(
    st.sampled_from(sorted(MESSAGES)),
    st.dictionaries(names, values, max_size=3),
    st.integers(0, 3),
)
def test_whatever_a_stranger_writes_is_read_or_refused(name, changes, lost_buffers):
    message = MESSAGES[name].to_message()
    message.header.update(changes)
    del message.buffers[len(message.buffers) - lost_buffers :]

    def read_insert_request() -> None:
        reader = InsertRequestReader(message)
        reader.session()
        specs = {group.id: group.columns for group in reader.groups()}
        reader.layouts()
        for steps in reader.steps():
            for spec in specs.get(steps.group, ()):
                take_column(reader.buffers, spec, steps.count)
        reader.items()
        reader.rows()
        reader.release()
        reader.cancel()

    readers = {
        "insert_request": read_insert_request,
        "insert_rows": read_insert_request,
        "insert_response": lambda: InsertResponse.from_message(message),
        "sample_request": lambda: SampleRequest.from_message(message),
        "sample_request_together": lambda: SampleRequest.from_message(message),
        "sample_response_packed": lambda: SampleResponseReader().read(message),
        "sample_response": lambda: SampleResponseReader().read(message),
        "update_request": lambda: unpack(message),
        "update_response": lambda: UpdateResponse.from_message(message),
    }
    with contextlib.suppress(InvalidArgument):
        readers[name]()
