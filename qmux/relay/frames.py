"""What QMux itself reads from an engine's stream: its type, and exactly one frame."""

from __future__ import annotations

from qmux.errors import PeerError
from qmux.protocol.codec import FrameDecoder, VarintReader
from qmux.protocol.frames import Frame
from qmux.quic.engine import Stream


async def read_frame(stream: Stream, decoder: FrameDecoder) -> Frame:
    """The next frame that ``decoder`` allows; what follows it stays on the stream. Raises PeerError, StreamError,
    ConnectionLost.
    """
    while True:
        data = await stream.read(decoder.want())
        if not data:
            raise PeerError("the stream ended inside a frame")
        if isinstance(item := decoder.feed(data), Frame):
            return item


async def read_stream_type(stream: Stream) -> int:
    """The type that ``stream`` begins with. Raises PeerError, StreamError, ConnectionLost."""
    reader = VarintReader()
    while True:
        data = await stream.read(reader.want())
        if not data:
            raise PeerError("a stream ended before its type")
        if (value := reader.feed(data)) is not None:
            return value
