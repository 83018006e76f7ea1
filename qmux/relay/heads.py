"""The first varint of a stream: what kind it is."""

from __future__ import annotations

from qmux.errors import PeerError
from qmux.protocol.codec import VarintReader
from qmux.quic.engine import Stream


async def read_stream_type(stream: Stream) -> int:
    """The type that ``stream`` begins with. Raises PeerError, StreamError, ConnectionLost."""
    reader = VarintReader()
    while True:
        data = await stream.read(reader.want())
        if not data:
            raise PeerError("a stream ended before its type")
        if (value := reader.feed(data)) is not None:
            return value
