"""Frames on an engine's stream: read exactly one, write one."""

from __future__ import annotations

from qmux.errors import PeerError
from qmux.protocol.codec import FrameDecoder
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
