"""hpack that remembers: its peers are hpack's own, which do not."""

import random

import pytest
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from reverb_async.wire.http2.header_blocks import MAX_BLOCKS, RememberingDecoder, RememberingEncoder

ANSWER = [(":status", "200"), ("content-type", "application/grpc+proto")]


def in_bytes(headers):
    return [(name.encode(), value.encode()) for name, value in headers]


def lists_of_headers(seed, count=400):
    """Return lists that repeat often, and now and then push others out of a small table."""
    rng = random.Random(seed)
    return [
        [(f"name-{rng.randrange(6)}", "v" * rng.choice([1, 1, 2, 300])) for _ in range(rng.randrange(4))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("size", [100, 700, 4096])
def test_what_is_remembered_is_what_would_be_encoded(size):
    ours, theirs, peer = RememberingEncoder(), Encoder(), Decoder()
    ours.header_table_size = theirs.header_table_size = size
    for headers in lists_of_headers(size):
        block = ours.encode(headers)
        assert block == theirs.encode(headers)
        assert list(peer.decode(block, raw=True)) == in_bytes(headers)


@pytest.mark.parametrize("size", [100, 700, 4096])
def test_what_is_remembered_is_what_would_be_decoded(size):
    ours, peer = RememberingDecoder(), Encoder()
    peer.header_table_size = size
    for headers in lists_of_headers(size):
        assert list(ours.decode(peer.encode(headers), raw=True)) == in_bytes(headers)


def test_headers_that_repeat_are_encoded_and_decoded_once():
    encoder, decoder = RememberingEncoder(), RememberingDecoder()
    decoder.decode(encoder.encode(ANSWER), raw=True)
    first = encoder.encode(ANSWER)
    assert encoder.encode(ANSWER) is first
    headers = list(decoder.decode(first, raw=True))
    again = decoder.decode(first, raw=True)
    assert all(one is other for one, other in zip(headers, again, strict=True))


def test_a_table_that_becomes_smaller_makes_both_sides_forget():
    encoder, decoder = RememberingEncoder(), RememberingDecoder()
    for size in (4096, 0, 64, 4096):
        encoder.header_table_size = size
        for _ in range(3):
            assert list(decoder.decode(encoder.encode(ANSWER), raw=True)) == in_bytes(ANSWER)


def test_no_more_than_a_few_blocks_are_remembered():
    decoder, encoder = RememberingDecoder(), RememberingEncoder()
    for n in range(10 * MAX_BLOCKS):
        block = Encoder().encode([NeverIndexedHeaderTuple("grpc-timeout", f"{n}m")])
        assert list(decoder.decode(block, raw=True)) == [(b"grpc-timeout", b"%dm" % n)]
        encoder.encode([("grpc-timeout", f"{n}m", True)])
    assert len(decoder._known) <= MAX_BLOCKS
    assert len(encoder._known) <= MAX_BLOCKS


def test_a_malformed_block_is_refused_each_time():
    decoder = RememberingDecoder()
    for _ in range(2):
        with pytest.raises(HPACKError):
            decoder.decode(b"\xff\xff\xff\x7f", raw=True)
