"""Each end of a control stream, sans-I/O: bytes in, frames out; methods return the bytes to send."""

from __future__ import annotations

from qmux.protocol import states
from qmux.protocol.codec import FrameDecoder, UnknownFrame, encode
from qmux.protocol.frames import (
    Drain,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Lanes,
    Register,
    RegisterAck,
    RegisterReject,
    RejectCode,
)
from qmux.protocol.states import State
from qmux.protocol.values import clipped

MIN_HEARTBEAT_INTERVAL_S = 0.1
"""A change of load is told at most this often: fresher is of no use to a selection, and costs packets."""

MIN_SILENCE_S = 2.0
"""A Heartbeat unanswered for this long (or three PTO, if longer) means that the worker is gone."""


class ControlStream:
    """What both ends share: decoding under a state table."""

    def __init__(self, receives: states.Table, sends: states.Table) -> None:
        self.state = State.NEW
        self._receives = receives
        self._sends = sends
        self._decoder = FrameDecoder({frame for _, frame in receives})

    def want(self) -> int:
        """How many bytes to read next, at most."""
        return self._decoder.want()

    def receive(self, data: bytes) -> Frame | None:
        """At most ``want()`` bytes; a frame when one is complete, checked against the state. Raises PeerError."""
        frame = self._decoder.feed(data)
        if frame is None or isinstance(frame, UnknownFrame):
            return None
        self.state = states.after_receiving(self._receives, self.state, frame)
        return frame

    def send(self, frame: Frame) -> bytes:
        """The bytes of ``frame``. Raises LocalError where the state does not allow it."""
        self.state = states.after_sending(self._sends, self.state, frame)
        return encode(frame)

    @property
    def is_registered(self) -> bool:
        """Registered and not over: heartbeats and lanes go on while draining."""
        return self.state in (State.REGISTERED, State.DRAINING)


class ServerSession(ControlStream):
    """The server's end."""

    def __init__(self) -> None:
        super().__init__(states.SERVER_RECEIVES, states.SERVER_SENDS)

    def accept(self, ack: RegisterAck) -> bytes:
        """Registered."""
        return self.send(ack)

    def reject(self, code: RejectCode, reason: str) -> bytes:
        """Not registered, and why."""
        return self.send(RegisterReject(code, clipped(reason)))

    def heard(self) -> bytes:
        """The answer to a Heartbeat."""
        return self.send(HeartbeatAck())

    def lanes(self, lanes: Lanes) -> bytes:
        """The lanes changed, or some are suspect."""
        return self.send(lanes)

    def drain(self, deadline_ms: int, replace: bool) -> bytes:
        """No new work on this connection."""
        return self.send(Drain(deadline_ms, replace))


class ClientSession(ControlStream):
    """The client's end, with the heartbeat's clock."""

    def __init__(self) -> None:
        super().__init__(states.CLIENT_RECEIVES, states.CLIENT_SENDS)
        self._interval_s = 4.0
        self._load = Heartbeat(0, 0)
        self._told: Heartbeat | None = None
        self._told_at = 0.0
        self._unanswered_since: float | None = None

    def register(self, frame: Register) -> bytes:
        """The first frame."""
        return self.send(frame)

    def receive(self, data: bytes) -> Frame | None:
        """See ``ControlStream.receive``; keeps the heartbeat's clock."""
        frame = super().receive(data)
        if isinstance(frame, RegisterAck):
            self._interval_s = frame.heartbeat_ms / 1000
        elif isinstance(frame, HeartbeatAck):
            self._unanswered_since = None
        return frame

    def drain(self, deadline_ms: int) -> bytes:
        """We are about to stop: no new work, please."""
        return self.send(Drain(deadline_ms))

    def load_changed(self, active_total: int, active_here: int) -> None:
        """What the next Heartbeat says."""
        self._load = Heartbeat(active_total, active_here)

    def next_heartbeat(self) -> float:
        """The ``time.monotonic()`` at which ``poll`` has something to send."""
        return self._told_at + (MIN_HEARTBEAT_INTERVAL_S if self._load != self._told else self._interval_s)

    def poll(self, now: float) -> bytes:
        """A Heartbeat where one is due, else nothing."""
        if not self.is_registered or now < self.next_heartbeat():
            return b""
        self._told, self._told_at = self._load, now
        if self._unanswered_since is None:
            self._unanswered_since = now
        return self.send(self._load)

    def is_silent(self, now: float, last_received_at: float, pto_s: float) -> bool:
        """Whether nothing at all was heard for max(3 PTO, 2 s) after a Heartbeat. To be asked some times a second."""
        if self._unanswered_since is not None and last_received_at > self._unanswered_since:
            # Something came since, but it may not be an answer to the newest one.
            self._unanswered_since = self._told_at if self._told_at >= last_received_at else None
        since = self._unanswered_since
        return since is not None and now - since > max(3 * pto_s, MIN_SILENCE_S)
