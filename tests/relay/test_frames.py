from __future__ import annotations

import pytest

from qmux.errors import PeerError
from qmux.protocol.codec import FrameDecoder, encode_stream_type
from qmux.protocol.frames import ConnReady, ConnRefused, NewConn, StreamType
from qmux.quic.engine import StreamError
from qmux.relay.frames import read_frame, read_stream_type
from tests.relay import fakes
from tests.relay.fakes import FakeConnection

REQUEST = NewConn(7, "web", "192.0.2.1:4000", "192.0.2.2:80")


async def test_the_head_of_a_stream_and_nothing_behind_it() -> None:
    stream = FakeConnection().open_stream()
    stream.peer_sends(encode_stream_type(StreamType.TCP))
    stream.peer_sends(REQUEST)
    stream.peer_sends(b"raw bytes")
    assert await read_stream_type(stream) == StreamType.TCP
    assert await read_frame(stream, FrameDecoder({NewConn})) == REQUEST
    assert stream.left == b"raw bytes"


async def test_frames_that_are_not_known_are_passed_over() -> None:
    stream = FakeConnection().open_stream()
    stream.peer_sends(b"\x40\x77\x03abc")
    stream.peer_sends(ConnReady())
    assert await read_frame(stream, FrameDecoder({ConnReady, ConnRefused})) == ConnReady()


@pytest.mark.parametrize("data", [b"", b"\x11", b"\x11\x01", b"\x40"])
async def test_a_stream_that_ends_inside_a_frame(data: bytes) -> None:
    stream = FakeConnection().open_stream()
    stream.peer_sends(data)
    stream.peer_ends()
    with pytest.raises(PeerError, match="the stream ended inside a frame"):
        await read_frame(stream, FrameDecoder({ConnReady}))


@pytest.mark.parametrize("data", [b"", b"\x40", b"\xc0\x00\x00"])
async def test_a_stream_that_ends_before_its_type(data: bytes) -> None:
    stream = FakeConnection().open_stream()
    stream.peer_sends(data)
    stream.peer_ends()
    with pytest.raises(PeerError, match="a stream ended before its type"):
        await read_stream_type(stream)


async def test_a_reset_stream() -> None:
    stream = FakeConnection().open_stream()
    stream.peer_ends(fakes.reset(0x11))
    with pytest.raises(StreamError, match="0x11"):
        await read_frame(stream, FrameDecoder({ConnReady}))
