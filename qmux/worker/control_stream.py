"""Writing frames to a control stream without waiting for the peer to read them: the same at both ends."""

from __future__ import annotations

from qmux.protocol.frames import AppCode
from qmux.quic.engine import ConnectionLost, Stream, StreamError
from qmux.tasks import TaskSet

MAX_UNSENT = 64
"""Frames that wait for a peer that does not read its control stream; with one more the connection is closed."""


class ControlWriter:
    """Sends frames in the order of the calls. A task of ``tasks`` waits for each that the stream has no room for yet.

    ``peer``: what the tasks are named by.
    """

    def __init__(self, stream: Stream, tasks: TaskSet, peer: str) -> None:
        self._stream = stream
        self._tasks = tasks
        self._peer = peer
        self._unsent = 0

    def send(self, frame: bytes) -> None:
        """Send an encoded frame, or close the connection where too many wait already."""
        if self._unsent >= MAX_UNSENT:
            self._stream.connection.close(AppCode.PROTOCOL_ERROR, "the control stream is not read")
            return
        self._unsent += 1
        task = self._tasks.start(self._write(frame), f"control frame to {self._peer}")
        task.add_done_callback(self._written)

    async def _write(self, frame: bytes) -> None:
        try:
            await self._stream.write(frame)
        except (StreamError, ConnectionLost):
            pass  # the handler's ``closed`` tells why

    def _written(self, _: object) -> None:
        self._unsent -= 1
