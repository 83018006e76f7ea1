from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.errors import PeerError
from qmux.protocol import varint
from qmux.protocol.codec import FrameDecoder, UnknownFrame, VarintReader, encode, encode_stream_type
from qmux.protocol.frames import (
    FRAME_TYPES,
    UNKNOWN_FRAME_BYTES,
    ConnReady,
    ConnRefused,
    Drain,
    Frame,
    Heartbeat,
    NewConn,
    Register,
    RegisterReject,
    StreamType,
)
from tests.protocol.strategies import ALL_FRAMES, frame_of, frames

UNKNOWN_TYPE = 0x3FFF


def everything() -> FrameDecoder:
    return FrameDecoder(ALL_FRAMES)


def feed(decoder: FrameDecoder, data: bytes, step: int = 1 << 30) -> Iterator[Frame | UnknownFrame]:
    """What comes out of ``data``, given in pieces of at most ``step`` bytes and never more than is wanted."""
    at = 0
    while at < len(data):
        taken = min(decoder.want(), step, len(data) - at)
        item = decoder.feed(data[at : at + taken])
        at += taken
        if item is not None:
            yield item


def raw(number: int, body: bytes, size: int | None = None) -> bytes:
    return varint.encode(number) + varint.encode(len(body) if size is None else size) + body


def raw_map(number: int, **fields: object) -> bytes:
    return raw(number, msgspec.msgpack.encode(fields))


@given(st.lists(frames, max_size=5))
def test_round_trip(sent: list[Frame]) -> None:
    assert list(feed(everything(), b"".join(map(encode, sent)))) == sent


@given(st.lists(frames, min_size=1, max_size=3), st.integers(1, 7))
def test_byte_by_byte_equals_whole(sent: list[Frame], step: int) -> None:
    data = b"".join(map(encode, sent))
    assert list(feed(everything(), data, 1)) == list(feed(everything(), data)) == sent
    assert list(feed(everything(), data, step)) == sent


@given(frames, st.binary(max_size=50), st.integers(1, 100))
def test_want_never_reaches_past_the_frame(frame: Frame, behind: bytes, step: int) -> None:
    data = encode(frame)
    decoder, at, item = everything(), 0, None
    while item is None:
        assert 1 <= decoder.want() <= len(data) - at
        taken = min(decoder.want(), step)
        item = decoder.feed((data + behind)[at : at + taken])
        at += taken
    assert item == frame
    assert at == len(data)
    assert decoder.want() == 1


@pytest.mark.parametrize("number", sorted(FRAME_TYPES))
def test_the_cap_is_checked_before_a_byte_of_the_body(number: int) -> None:
    frame, cap = FRAME_TYPES[number]
    head = raw(number, b"", cap + 1)
    with pytest.raises(PeerError, match=f"a {frame.__name__} frame of {cap + 1} bytes; at most {cap}"):
        list(feed(everything(), head))
    decoder = everything()
    assert list(feed(decoder, raw(number, b"", cap))) == []
    assert decoder.want() == cap


@pytest.mark.parametrize("size", [UNKNOWN_FRAME_BYTES + 1, 1 << 30, varint.MAX])
def test_no_length_makes_us_allocate(size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="at most"):
            list(feed(everything(), raw(UNKNOWN_TYPE, b"", size)))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
@pytest.mark.parametrize("field", [b"\xa8services", b"\xa7session", b"\xa7unknown"])
def test_no_length_inside_a_frame_makes_us_allocate(field: bytes, announced: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="does not decode"):
            list(feed(everything(), raw(0x01, b"\x81" + field + announced)))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.integers(0, varint.MAX).filter(lambda number: number not in FRAME_TYPES), st.binary(max_size=300), frames)
def test_unknown_types_are_skipped(number: int, body: bytes, frame: Frame) -> None:
    assert list(feed(everything(), raw(number, body) + encode(frame))) == [UnknownFrame(number), frame]


def test_unknown_types_are_skipped_up_to_the_cap() -> None:
    largest = raw(UNKNOWN_TYPE, b"x" * UNKNOWN_FRAME_BYTES)
    assert list(feed(everything(), largest)) == [UnknownFrame(UNKNOWN_TYPE)]
    with pytest.raises(PeerError, match=r"unknown type 0x3fff frame of 4097 bytes; at most 4096"):
        list(feed(everything(), raw(UNKNOWN_TYPE, b"", UNKNOWN_FRAME_BYTES + 1)))


@pytest.mark.parametrize("later", [1, "text", [1, [2]], {"a": {"b": None}}, 1.5, b"bytes", None])
def test_unknown_fields_are_ignored(later: object) -> None:
    data = raw_map(0x05, active_total=3, active_here=4, of_a_later_release=later)
    assert list(feed(everything(), data)) == [Heartbeat(3, 4)]


def test_missing_field() -> None:
    with pytest.raises(PeerError, match=r"Heartbeat frame does not decode.*active_here"):
        list(feed(everything(), raw_map(0x05, active_total=3)))


@pytest.mark.parametrize("kind", ALL_FRAMES)
def test_a_known_frame_that_is_not_allowed_is_refused(kind: type[Frame]) -> None:
    number = next(number for number, (frame, _) in FRAME_TYPES.items() if frame is kind)
    decoder = FrameDecoder(frame for frame in ALL_FRAMES if frame is not kind)
    with pytest.raises(PeerError, match=f"a {kind.__name__} frame is not allowed here"):
        list(feed(decoder, raw(number, b"\x80")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80",  # fields are missing
        b"\x90",  # an array
        b"\xc1",  # never used in msgpack
        b"\x82\xacactive_total\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\xabactive_here\x00",  # nan
        b"\x82\xacactive_total\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\xabactive_here\x00",  # 1.0
        b"\x82\xacactive_total\xc3\xabactive_here\x00",  # true
        b"\x82\xacactive_total\xff\xabactive_here\x00",  # -1
        b"\x82\xacactive_total\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xabactive_here\x00",  # 2^64 - 1
        b"\x82\xacactive_total\x00\xabactive_here\x00\x00",  # a byte too many
        b"\x81\xa2\xff\xfe\x00",  # a key that is not UTF-8
        b"\x82\xacactive_total\x00\xabactive_here" + b"\x91" * 200,  # nested
        b"\x81\xa1x" + b"\x91" * 250,
    ],
)
def test_bodies_that_are_no_heartbeat(body: bytes) -> None:
    with pytest.raises(PeerError, match=r"Heartbeat|count"):
        list(feed(everything(), raw(0x05, body)))


def test_nested_deeper_than_the_stack() -> None:
    with pytest.raises(PeerError, match="does not decode"):
        list(feed(everything(), raw(0x01, b"\x81\xa1x" + b"\x91" * 60_000)))


def test_text_that_is_not_utf8() -> None:
    body = b"\x81\xa4code\xa2\xff\xfe"
    with pytest.raises(PeerError, match="RegisterReject frame does not decode"):
        list(feed(everything(), raw(0x03, body)))


@given(st.binary(max_size=400), st.integers(1, 50))
def test_random_bytes_give_a_frame_or_peer_error(data: bytes, step: int) -> None:
    with suppress(PeerError):
        for item in feed(everything(), data, step):
            assert isinstance(item, Frame | UnknownFrame)


@given(st.sampled_from(sorted(FRAME_TYPES)), st.binary(max_size=200))
def test_random_bodies_give_a_frame_or_peer_error(number: int, body: bytes) -> None:
    with suppress(PeerError):
        (item,) = feed(everything(), raw(number, body))
        assert isinstance(item, FRAME_TYPES[number][0])


@given(st.data())
def test_damaged_frames_give_a_frame_or_peer_error(data: st.DataObject) -> None:
    encoded = bytearray(encode(data.draw(frames)))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PeerError):
        for item in feed(everything(), bytes(encoded)):
            assert isinstance(item, Frame | UnknownFrame)


@given(st.data())
def test_what_decodes_encodes_again(data: st.DataObject) -> None:
    """Whatever the checks let through fits into a frame: a value that passes can be passed on."""
    kind = data.draw(st.sampled_from(ALL_FRAMES))
    frame = data.draw(frame_of(kind))
    assert list(feed(everything(), encode(frame))) == [frame]


def test_feeding_more_than_wanted_is_a_defect() -> None:
    decoder = everything()
    with pytest.raises(ValueError, match="fed 2 bytes where 1 were wanted"):
        decoder.feed(b"\x05\x01")


def test_feeding_nothing_changes_nothing() -> None:
    decoder = everything()
    assert decoder.feed(b"") is None
    decoder.feed(b"\x05")
    assert decoder.feed(b"") is None
    assert decoder.want() == 1


@pytest.mark.parametrize(
    "frame",
    [
        ConnRefused("refused", "x" * 2000),
        NewConn(1, "a" * 2000, "", ""),
        RegisterReject("x", "y" * 5000),
        Register(bytes(16), "c" * 70_000, (), ""),
    ],
)
def test_nothing_above_its_cap_is_sent(frame: Frame) -> None:
    with pytest.raises(ValueError, match=r"bytes; at most \d+ are allowed"):
        encode(frame)


def test_empty_frames_stay_small() -> None:
    assert encode(ConnReady()) == b"\x11\x01\x80"
    assert len(encode(Heartbeat(0, 0))) < 40
    assert len(encode(Drain(0))) < 20


def test_stream_types() -> None:
    for stream_type in StreamType:
        reader = VarintReader()
        assert reader.feed(encode_stream_type(stream_type)) == stream_type


@given(st.integers(0, varint.MAX))
def test_varint_reader_byte_by_byte(value: int) -> None:
    reader = VarintReader()
    encoded = varint.encode(value)
    for at, byte in enumerate(encoded):
        assert reader.feed(b"") is None
        assert 1 <= reader.want() <= len(encoded) - at
        result = reader.feed(bytes([byte]))
    assert result == value
