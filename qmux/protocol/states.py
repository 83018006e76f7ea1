"""The states of a control stream at each end, as one table each: (state, what happens) → next state."""

from __future__ import annotations

import enum

from qmux.errors import PeerError, QmuxError
from qmux.protocol.frames import Drain, Frame, Heartbeat, HeartbeatAck, Lanes, Register, RegisterAck, RegisterReject


class State(enum.Enum):
    """Of one control stream."""

    NEW = "new"  # nothing was said
    REGISTERING = "registering"  # Register is under way
    REGISTERED = "registered"
    DRAINING = "draining"  # no new work on this connection
    REJECTED = "rejected"


class LocalError(QmuxError):
    """We tried something that our own state does not allow: a defect here, never the peer's."""


Table = dict[tuple[State, type[Frame]], State]

SERVER_RECEIVES: Table = {
    (State.NEW, Register): State.REGISTERING,
    (State.REGISTERED, Heartbeat): State.REGISTERED,
    (State.REGISTERED, Drain): State.DRAINING,
    (State.DRAINING, Heartbeat): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
}
SERVER_SENDS: Table = {
    (State.REGISTERING, RegisterAck): State.REGISTERED,
    (State.REGISTERING, RegisterReject): State.REJECTED,
    (State.REGISTERED, HeartbeatAck): State.REGISTERED,
    (State.REGISTERED, Lanes): State.REGISTERED,
    (State.REGISTERED, Drain): State.DRAINING,
    (State.DRAINING, HeartbeatAck): State.DRAINING,
    (State.DRAINING, Lanes): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
}
CLIENT_SENDS: Table = {
    (State.NEW, Register): State.REGISTERING,
    (State.REGISTERED, Heartbeat): State.REGISTERED,
    (State.REGISTERED, Drain): State.DRAINING,
    (State.DRAINING, Heartbeat): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
}
CLIENT_RECEIVES: Table = {
    (State.REGISTERING, RegisterAck): State.REGISTERED,
    (State.REGISTERING, RegisterReject): State.REJECTED,
    (State.REGISTERED, HeartbeatAck): State.REGISTERED,
    (State.REGISTERED, Lanes): State.REGISTERED,
    (State.REGISTERED, Drain): State.DRAINING,
    (State.DRAINING, HeartbeatAck): State.DRAINING,
    (State.DRAINING, Lanes): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
}


def after_receiving(table: Table, state: State, frame: Frame) -> State:
    """The state after the peer sent ``frame``. Raises PeerError where it may not."""
    following = table.get((state, type(frame)))
    if following is None:
        raise PeerError(f"a {type(frame).__name__} frame is not allowed in state {state.value}")
    return following


def after_sending(table: Table, state: State, frame: Frame) -> State:
    """The state after we send ``frame``. Raises LocalError where we may not."""
    following = table.get((state, type(frame)))
    if following is None:
        raise LocalError(f"{type(frame).__name__} cannot be sent in state {state.value}")
    return following
