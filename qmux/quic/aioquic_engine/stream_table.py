"""aioquic's stream table, which knows by itself who has something to say.

aioquic looks at every open stream for every packet. Here a stream reports: when bytes are written, when frames are
acknowledged or lost, when a direction ends. So a packet costs the same beside 2,000 idle streams as beside none. The
reports come from subclasses of aioquic's sender and receiver, put in place when a stream enters the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic.quic.events import StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

CONTROL_STREAM_ID = 0
"""The first stream that a client opens; it has top priority."""


class StreamTable(dict[int, QuicStream]):
    """``announced`` tells the receive window that the peer was told for a new stream, by its ID."""

    def __init__(self, announced: Callable[[int], int]) -> None:
        super().__init__()
        self._announced = announced
        # IDs, not streams: what a closed stream reports is ignored, and no cycle keeps it. Ordered: who waited longest.
        self._speaking: dict[int, None] = {}
        self._announcing: dict[int, None] = {}
        self._is_writing = False
        self.acknowledged: set[int] = set()
        """Streams of which the peer acknowledged something since this was last cleared."""

    def __setitem__(self, stream_id: int, stream: QuicStream) -> None:
        super().__setitem__(stream_id, stream)
        _adopt(self, stream)
        # The window of a stream that is opened after ``raise_limits`` is another than the transport parameters said.
        stream.max_stream_data_local_sent = self._announced(stream_id)
        stream.max_stream_data_local = max(stream.max_stream_data_local, stream.max_stream_data_local_sent)
        if stream.max_stream_data_local != stream.max_stream_data_local_sent:
            self.announce(stream_id)

    def values(self) -> Any:
        """All streams; while a packet is written, those with a window to announce: aioquic asks for nothing else."""
        return self._to_announce() if self._is_writing else super().values()

    def speak(self, stream_id: int) -> None:
        """This stream may have something to send, or is finished and to be discarded."""
        self._speaking[stream_id] = None

    def announce(self, stream_id: int) -> None:
        """This stream's receive window moved, or the frame that said so was lost."""
        self._announcing[stream_id] = None

    def begin_writing(self) -> list[QuicStream]:
        """The streams with something to send now: the control stream first, then whoever waited longest."""
        self._is_writing = True
        named = [(stream_id, self.get(stream_id)) for stream_id in self._speaking]
        heard = {stream_id: stream for stream_id, stream in named if stream is not None and not _is_silent(stream)}
        self._speaking = dict.fromkeys(heard)
        speaking = [stream for stream in heard.values() if _can_speak(stream)]
        if CONTROL_STREAM_ID in heard:
            speaking.sort(key=_is_data_stream)
        return speaking

    def served(self, offered: list[QuicStream], left: list[QuicStream]) -> None:
        """Of the streams ``offered`` to aioquic, ``left`` are still open, in their new order of service."""
        for stream in offered:
            self._speaking.pop(_id_of(stream), None)
        for stream in left:
            if not _is_silent(stream):
                self.speak(_id_of(stream))

    def end_writing(self) -> None:
        """The packets are built."""
        self._is_writing = False
        if self._announcing:
            self._announcing = dict.fromkeys(_id_of(stream) for stream in self._to_announce())

    def _to_announce(self) -> list[QuicStream]:
        streams = [self.get(stream_id) for stream_id in self._announcing]
        return [
            stream
            for stream in streams
            if stream is not None and stream.max_stream_data_local != stream.max_stream_data_local_sent
        ]


class ReportingSender(QuicStreamSender):
    """aioquic's sending part; reports to the table."""

    table: StreamTable

    def report(self) -> None:
        """There may be something to do for this stream."""
        assert self._stream_id is not None, "only CRYPTO streams have no ID"
        self.table.speak(self._stream_id)

    def write(self, data: bytes, end_stream: bool = False) -> None:
        """Queue bytes, and FIN after them."""
        super().write(data, end_stream)
        self.report()

    def reset(self, error_code: int) -> None:
        """RESET_STREAM; what was buffered is never sent again, so it is given back now and not on acknowledgement."""
        super().reset(error_code)
        if self._reset_error_code is not None:
            self._buffer = bytearray()
            self._pending = type(self._pending)()
        self.report()

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        """Bytes were acknowledged or lost."""
        super().on_data_delivery(delivery, start, stop, fin)
        if delivery == QuicDeliveryState.ACKED:
            self._report_progress()
            if self.is_finished:
                self.report()
        else:
            self.report()

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        """RESET_STREAM was acknowledged or lost."""
        super().on_reset_delivery(delivery)
        self._report_progress()
        self.report()

    def _report_progress(self) -> None:
        assert self._stream_id is not None, "only CRYPTO streams have no ID"
        self.table.acknowledged.add(self._stream_id)


class ReportingReceiver(QuicStreamReceiver):
    """aioquic's receiving part; reports to the table."""

    table: StreamTable

    def report(self) -> None:
        """There may be something to do for this stream."""
        assert self._stream_id is not None, "only CRYPTO streams have no ID"
        self.table.speak(self._stream_id)

    def handle_frame(self, frame: QuicStreamFrame) -> StreamDataReceived | None:
        """A STREAM frame."""
        event = super().handle_frame(frame)
        if self.is_finished:
            self.report()
        return event

    def handle_reset(self, *, final_size: int, error_code: int = 0) -> StreamReset | None:
        """A RESET_STREAM frame; what was received out of order is never delivered."""
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        self._buffer = bytearray()
        self._ranges = type(self._ranges)()
        self.report()
        return event

    def stop(self, error_code: int = 0) -> None:
        """STOP_SENDING, unless the peer has sent everything: then nothing is left to stop (RFC 9000 §3.5)."""
        if not self.is_finished:
            super().stop(error_code)
            self.report()

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        """STOP_SENDING was acknowledged or lost."""
        super().on_stop_sending_delivery(delivery)
        self.report()


def _adopt(table: StreamTable, stream: QuicStream) -> None:
    """Make a stream that aioquic just created one that reports to ``table``."""
    sender, receiver = stream.sender, stream.receiver
    sender.__class__ = ReportingSender
    receiver.__class__ = ReportingReceiver
    assert isinstance(sender, ReportingSender)
    assert isinstance(receiver, ReportingReceiver)
    sender.table = receiver.table = table


def _id_of(stream: QuicStream) -> int:
    assert stream.stream_id is not None, "only CRYPTO streams have no ID"
    return stream.stream_id


def _is_silent(stream: QuicStream) -> bool:
    """Nothing to send, and not to be discarded."""
    sender = stream.sender
    return (
        sender.buffer_is_empty
        and not sender.reset_pending
        and not stream.receiver.stop_pending
        and not stream.is_finished
    )


def _can_speak(stream: QuicStream) -> bool:
    """Not silent, and not only waiting for the peer's window: a stalled stream must not cost the others time."""
    sender = stream.sender
    if sender.reset_pending or stream.receiver.stop_pending or stream.is_finished:
        return True
    if sender.buffer_is_empty or stream.is_blocked:
        return False
    pending = sender._pending
    return len(pending) == 0 or pending[0].start < stream.max_stream_data_remote


def _is_data_stream(stream: QuicStream) -> bool:
    return stream.stream_id != CONTROL_STREAM_ID
