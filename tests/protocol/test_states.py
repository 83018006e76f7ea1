"""Every (state, frame) pair at both ends, and two ends that talk to each other."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qmux.errors import PeerError
from qmux.protocol import states
from qmux.protocol.codec import encode
from qmux.protocol.frames import (
    ConnReady,
    Drain,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Lanes,
    NewConn,
    Register,
    RegisterAck,
    RegisterReject,
)
from qmux.protocol.sessions import ClientSession, ControlStream, ServerSession
from qmux.protocol.states import LocalError, State
from tests.depth import examples
from tests.protocol.strategies import ALL_FRAMES, frame_of

FROM_CLIENT = {Register, Heartbeat, Drain}
FROM_SERVER = {RegisterAck, RegisterReject, HeartbeatAck, Lanes, Drain}

EVERY_PAIR = list(itertools.product(State, ALL_FRAMES))


def allowed(state: State, frame: type[Frame], *, from_client: bool) -> State | None:
    """The rules of docs/architecture.md in words of their own: what follows, or None where it may not be."""
    if frame not in (FROM_CLIENT if from_client else FROM_SERVER):
        return None
    if frame is Register:
        return State.REGISTERING if state is State.NEW else None
    if frame in (RegisterAck, RegisterReject):
        after = State.REGISTERED if frame is RegisterAck else State.REJECTED
        return after if state is State.REGISTERING else None
    if state not in (State.REGISTERED, State.DRAINING):
        return None
    return State.DRAINING if frame is Drain else state


@pytest.mark.parametrize(("state", "kind"), EVERY_PAIR)
@given(data=st.data())
@settings(max_examples=3)
def test_receiving(state: State, kind: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(frame_of(kind))
    for session, from_client in ((ServerSession(), True), (ClientSession(), False)):
        session.state = state
        expected = allowed(state, kind, from_client=from_client)
        if expected is None:
            with pytest.raises(PeerError, match=f"a {kind.__name__} frame is not allowed"):
                take(session, encode(frame))
            assert session.state is state
        else:
            assert take(session, encode(frame)) == [frame]
            assert session.state is expected


@pytest.mark.parametrize(("state", "kind"), EVERY_PAIR)
@given(data=st.data())
@settings(max_examples=3)
def test_sending(state: State, kind: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(frame_of(kind))
    for session, from_client in ((ServerSession(), False), (ClientSession(), True)):
        session.state = state
        expected = allowed(state, kind, from_client=from_client)
        if expected is None:
            with pytest.raises(LocalError, match=f"{kind.__name__} cannot be sent in state {state.value}"):
                session.send(frame)
            assert session.state is state
        else:
            assert session.send(frame) == encode(frame)
            assert session.state is expected


def test_the_tables_name_nothing_of_a_user_connection() -> None:
    for table in (states.SERVER_RECEIVES, states.SERVER_SENDS, states.CLIENT_RECEIVES, states.CLIENT_SENDS):
        assert not {frame for _, frame in table} & {NewConn, ConnReady}


def take(session: ControlStream, data: bytes) -> list[Frame]:
    """Feed ``data`` as a stream would give it."""
    frames, at = [], 0
    while at < len(data):
        taken = min(session.want(), len(data) - at)
        frame = session.receive(data[at : at + taken])
        at += taken
        if frame is not None:
            frames.append(frame)
    return frames


class TwoEnds(RuleBasedStateMachine):
    """A client and a server whose frames are under way for any time: whatever each may send, the other accepts."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientSession()
        self.server = ServerSession()
        self.to_server: deque[tuple[Frame, bytes]] = deque()
        self.to_client: deque[tuple[Frame, bytes]] = deque()

    @rule(data=st.data())
    def client_sends(self, data: st.DataObject) -> None:
        self._send(self.client, self.to_server, data)

    @rule(data=st.data())
    def server_sends(self, data: st.DataObject) -> None:
        self._send(self.server, self.to_client, data)

    @precondition(lambda self: self.to_server)
    @rule()
    def arrives_at_server(self) -> None:
        frame, data = self.to_server.popleft()
        assert take(self.server, data) == [frame]

    @precondition(lambda self: self.to_client)
    @rule()
    def arrives_at_client(self) -> None:
        frame, data = self.to_client.popleft()
        assert take(self.client, data) == [frame]

    def _send(self, session: ControlStream, way: deque[tuple[Frame, bytes]], data: st.DataObject) -> None:
        possible = [kind for kind in ALL_FRAMES if (session.state, kind) in session._sends]
        if possible:
            frame = data.draw(frame_of(data.draw(st.sampled_from(possible))))
            way.append((frame, session.send(frame)))

    @invariant()
    def ends_agree_when_nothing_is_under_way(self) -> None:
        if not self.to_server and not self.to_client:
            assert self.client.state is self.server.state

    @invariant()
    def nobody_is_registered_alone(self) -> None:
        if self.client.is_registered:
            assert self.server.is_registered


TwoEnds.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=30)
test_two_ends = TwoEnds.TestCase
