"""Every frame with any values that its rules allow, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from qmux.protocol import varint
from qmux.protocol.frames import (
    FRAME_TYPES,
    SESSION_BYTES,
    ConnReady,
    ConnRefused,
    Drain,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Lanes,
    Limits,
    NewConn,
    Offered,
    RefuseCode,
    Register,
    RegisterAck,
    RegisterReject,
    RejectCode,
    ServiceSettings,
)
from qmux.protocol.values import MAX_COUNT, MAX_DURATION_MS, MAX_STREAMS, MAX_WEIGHT
from qmux.steering import MAX_SLOT

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,30}", fullmatch=True)
texts = st.text(st.characters(categories=("L", "N", "P")), max_size=40)
counts = st.integers(0, MAX_COUNT)
durations = st.integers(0, MAX_DURATION_MS)
positive_durations = st.integers(1, MAX_DURATION_MS)
lanes = st.lists(st.integers(0, MAX_SLOT), unique=True, max_size=16).map(tuple)
capabilities = st.lists(texts, max_size=4).map(tuple)

_STRATEGIES: dict[type[Frame], st.SearchStrategy[Frame]] = {
    Register: st.builds(
        Register,
        session=st.binary(min_size=SESSION_BYTES, max_size=SESSION_BYTES),
        client_id=texts,
        services=st.lists(
            st.builds(Offered, names, st.integers(1, MAX_WEIGHT), st.booleans()),
            unique_by=lambda offered: offered.name,
            max_size=8,
        ).map(tuple),
        version=texts,
        capabilities=capabilities,
    ),
    RegisterAck: st.builds(
        RegisterAck,
        server_id=st.binary(min_size=1, max_size=64),
        lane=st.integers(0, MAX_SLOT),
        lanes=lanes,
        keep_alive_ms=positive_durations,
        heartbeat_ms=positive_durations,
        limits=st.builds(Limits, st.integers(1, MAX_STREAMS), positive_durations),
        services=st.lists(st.builds(ServiceSettings, names, durations, durations), max_size=8).map(tuple),
        version=texts,
        capabilities=capabilities,
    ),
    RegisterReject: st.builds(RegisterReject, st.sampled_from(RejectCode) | texts, texts),
    Lanes: st.builds(Lanes, st.integers(0, MAX_SLOT), lanes, lanes),
    Heartbeat: st.builds(Heartbeat, counts, counts),
    HeartbeatAck: st.just(HeartbeatAck()),
    Drain: st.builds(Drain, durations, st.booleans()),
    NewConn: st.builds(NewConn, st.integers(0, varint.MAX), names, texts, texts),
    ConnReady: st.just(ConnReady()),
    ConnRefused: st.builds(ConnRefused, st.sampled_from(RefuseCode) | texts, texts),
}

assert set(_STRATEGIES) == {frame for frame, _ in FRAME_TYPES.values()}, "a frame has no strategy"

ALL_FRAMES = tuple(_STRATEGIES)


def frame_of(kind: type[Frame]) -> st.SearchStrategy[Frame]:
    """Frames of one type."""
    return _STRATEGIES[kind]


frames = st.one_of(list(_STRATEGIES.values()))
