"""Frames to bytes and back. The decoder says how many bytes it wants, so that nothing behind a frame is taken."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from qmux.errors import PeerError
from qmux.protocol import varint
from qmux.protocol.frames import FRAME_TYPES, UNKNOWN_FRAME_BYTES, Frame, StreamType
from qmux.protocol.values import check

_TYPE_OF = {frame: (number, cap) for number, (frame, cap) in FRAME_TYPES.items()}
_encoder = msgspec.msgpack.Encoder()
_decoders = {frame: msgspec.msgpack.Decoder(frame) for frame in _TYPE_OF}


class UnknownFrame(msgspec.Struct, frozen=True):
    """A frame of a type that this release does not know, skipped."""

    number: int


def encode(frame: Frame) -> bytes:
    """``frame`` as it goes on the wire. Raises ValueError where it is larger than its type allows."""
    number, cap = _TYPE_OF[type(frame)]
    body = _encoder.encode(frame)
    if len(body) > cap:
        raise ValueError(f"{type(frame).__name__} of {len(body)} bytes; at most {cap} are allowed")
    return varint.encode(number) + varint.encode(len(body)) + body


def encode_stream_type(stream_type: StreamType) -> bytes:
    """The first bytes of a stream."""
    return varint.encode(stream_type)


class VarintReader:
    """One variable-length integer, for the type of a stream."""

    def __init__(self) -> None:
        self._bytes = b""

    def want(self) -> int:
        """Bytes to read next, at most."""
        return varint.length(self._bytes[0]) - len(self._bytes) if self._bytes else 1

    def feed(self, data: bytes) -> int | None:
        """At most ``want()`` bytes; the value, once it is complete."""
        self._bytes += data
        if not self._bytes:
            return None
        if len(self._bytes) < varint.length(self._bytes[0]):
            return None
        value, self._bytes = varint.decode(self._bytes), b""
        return value


class FrameDecoder:
    """Frames out of bytes. ``allowed``: the frames that may come here; any other known one is an error."""

    def __init__(self, allowed: Collection[type[Frame]]) -> None:
        self._allowed = frozenset(allowed)
        self._varint = VarintReader()
        self._number: int | None = None
        self._size: int | None = None
        self._body = bytearray()

    def want(self) -> int:
        """Bytes to read next, at most: 1 or more, and never beyond the end of the frame."""
        return self._varint.want() if self._size is None else self._size - len(self._body)

    def feed(self, data: bytes) -> Frame | UnknownFrame | None:
        """At most ``want()`` bytes; a frame when it is complete. Raises PeerError."""
        if len(data) > self.want():
            raise ValueError(f"fed {len(data)} bytes where {self.want()} were wanted")
        if not data:
            return None
        if self._size is None:
            self._header(data)
        else:
            self._body += data
        if self._size is None or len(self._body) < self._size:
            return None
        return self._complete()

    def _header(self, data: bytes) -> None:
        value = self._varint.feed(data)
        if value is None:
            return
        if self._number is None:
            self._number = value
            return
        known = FRAME_TYPES.get(self._number)
        cap = known[1] if known else UNKNOWN_FRAME_BYTES
        name = known[0].__name__ if known else f"unknown type {self._number:#x}"
        if known and known[0] not in self._allowed:
            raise PeerError(f"a {name} frame is not allowed here")
        if value > cap:
            raise PeerError(f"a {name} frame of {value} bytes; at most {cap} are allowed")
        self._size = value

    def _complete(self) -> Frame | UnknownFrame:
        assert self._number is not None, "the header came first"
        number, body = self._number, bytes(self._body)
        self._number = self._size = None
        self._body.clear()
        if number not in FRAME_TYPES:
            return UnknownFrame(number)
        kind = FRAME_TYPES[number][0]
        try:
            frame = _decoders[kind].decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"a {kind.__name__} frame does not decode: {error}") from None
        check(frame)
        return frame
