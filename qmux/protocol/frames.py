"""Every frame of ``qmux-tunnel/1``, with its type, its size cap and the codes it carries.

A stream and a DATAGRAM begin with a type varint (``StreamType``). On the control stream, and at the head of a TCP
stream, follow frames: type varint, length varint, msgpack map (``qmux.protocol.codec``). The cap is checked against the
length before a byte of the body is stored. Fields that a release does not know are ignored, and so are frame types that
it does not know (up to ``UNKNOWN_FRAME_BYTES``): this is how the previous release interoperates.
"""

from __future__ import annotations

import enum

import msgspec

SESSION_BYTES = 16
"""A session is 128 random bits (docs/architecture.md, "Words")."""

UNKNOWN_FRAME_BYTES = 4096
"""Longest frame of an unknown type that is skipped; a longer one is an error."""


class StreamType(enum.IntEnum):
    """First varint of a stream. An unknown one gets STOP_SENDING with ``AppCode.UNKNOWN_STREAM_TYPE``."""

    CONTROL = 0x01  # client-opened, the first stream of a connection
    TCP = 0x02  # server-opened, one for each user connection


class AppCode(enum.IntEnum):
    """Application error codes (RFC 9000 §20.2) of CONNECTION_CLOSE, RESET_STREAM and STOP_SENDING."""

    NONE = 0x00
    PROTOCOL_ERROR = 0x01  # a rule of this package was broken
    NOT_REGISTERED = 0x02  # no Register within handshake_timeout
    REJECTED = 0x03  # RegisterReject was sent first; it says why
    GOING_AWAY = 0x04  # the process ends
    REPLACED = 0x05  # a newer connection of the same session stands here
    SURPLUS = 0x06  # a connection on none of the lanes, or a second way to the same server
    UNKNOWN_STREAM_TYPE = 0x10
    CANCELLED = 0x11  # an attempt that is no longer wanted
    SOCKET_RESET = 0x12  # the user's or the service's TCP connection was reset
    TIMED_OUT = 0x13  # idle_timeout, half_closed_timeout or setup_timeout
    REFUSED = 0x14  # ConnRefused was sent first; it says why


class RejectCode(enum.StrEnum):
    """Why a Register was refused. Each has a sentence for people in ``qmux.protocol.reasons``."""

    UNAUTHORIZED_SERVICE = "unauthorized_service"  # the certificate does not name it
    UNKNOWN_SERVICE = "unknown_service"  # the server has no such service
    NO_SERVICE = "no_service"  # nothing was offered
    TOO_MANY_CLIENTS = "too_many_clients"  # max_clients
    INVALID = "invalid"  # a field has a value that it cannot have
    INCOMPATIBLE = "incompatible"  # no common version or a required capability is missing
    SHUTTING_DOWN = "shutting_down"
    CERTIFICATE_EXPIRED = "certificate_expired"


class RefuseCode(enum.StrEnum):
    """Why a client could not connect a user to its service."""

    REFUSED = "refused"  # the target refused the connection
    TIMEOUT = "timeout"  # the dial took longer than connect_timeout
    RESET = "reset"  # the target accepted the connection and reset it at once
    UNREACHABLE = "unreachable"  # no route, or no such Unix socket
    NAME = "name"  # the target's name does not resolve
    UNKNOWN_SERVICE = "unknown_service"  # this client does not serve it (any more)
    DRAINING = "draining"  # the client is about to stop
    OVERLOADED = "overloaded"  # out of descriptors or over a cap


class Offered(msgspec.Struct, frozen=True, omit_defaults=True):
    """One service that a client offers."""

    name: str
    weight: int = 1
    backup: bool = False


class Register(msgspec.Struct, frozen=True, omit_defaults=True):
    """Client → server, first frame of the control stream and only there: a second one on it is an error.

    As early data it may be replayed on another connection (RFC 8446 §8): it counts when the handshake is confirmed.
    """

    session: bytes
    client_id: str
    services: tuple[Offered, ...]
    version: str
    capabilities: tuple[str, ...] = ()
    credentials: bytes | None = None  # reserved


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client allows the server: transport parameters go before registration, so they are raised here."""

    max_streams: int
    idle_timeout_ms: int


class ServiceSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What both ends of a service must agree on; the server says it. Milliseconds; 0: off."""

    name: str
    idle_timeout_ms: int = 0
    half_closed_timeout_ms: int = 300_000


class RegisterAck(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client: registered. ``server_id`` is drawn at each start of a supervisor."""

    server_id: bytes
    lane: int
    lanes: tuple[int, ...]
    keep_alive_ms: int
    heartbeat_ms: int
    limits: Limits
    services: tuple[ServiceSettings, ...]
    version: str = ""
    capabilities: tuple[str, ...] = ()


class RegisterReject(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client: not registered. ``code`` is a RejectCode (a str, so that a newer one can be shown too)."""

    code: str
    reason: str = ""


class Lanes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client: the lanes to hold now; ``lane`` is the one this connection stands for.

    ``suspect``: lanes whose worker has just died: PING those connections, so that a stateless reset can answer.
    """

    lane: int
    lanes: tuple[int, ...]
    suspect: tuple[int, ...] = ()


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """Client → server. ``active_total``: user connections of the whole session at all servers; ``active_here``: those
    of them that came from the server that this goes to, on all of its connections. Counted at one moment, so that the
    difference is exact; what it holds itself, the server knows better.
    """

    active_total: int
    active_here: int


class HeartbeatAck(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client: heard. (A QUIC acknowledgement says that a packet came, this that the worker is alive.)"""


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client, or client → server before it stops: no new work on this connection.

    ``deadline_ms`` from now the connection closes. ``replace``: first register a replacement.
    """

    deadline_ms: int
    replace: bool = False


class NewConn(msgspec.Struct, frozen=True, omit_defaults=True):
    """Server → client, at the head of a TCP stream. ``source`` and ``dest``: the user's connection, "host:port"."""

    conn_id: int
    service: str
    source: str
    dest: str


class ConnReady(msgspec.Struct, frozen=True, omit_defaults=True):
    """Client → server: the service is connected. After it the stream carries raw bytes and nothing else, ever."""


class ConnRefused(msgspec.Struct, frozen=True, omit_defaults=True):
    """Client → server: not connected. ``code`` is a RefuseCode."""

    code: str
    reason: str = ""


Frame = (
    Register
    | RegisterAck
    | RegisterReject
    | Lanes
    | Heartbeat
    | HeartbeatAck
    | Drain
    | NewConn
    | ConnReady
    | ConnRefused
)

FRAME_TYPES: dict[int, tuple[type[Frame], int]] = {
    0x01: (Register, 65_536),
    0x02: (RegisterAck, 65_536),
    0x03: (RegisterReject, 4096),
    0x04: (Lanes, 16_384),
    0x05: (Heartbeat, 256),
    0x06: (HeartbeatAck, 256),
    0x07: (Drain, 256),
    0x10: (NewConn, 1024),
    0x11: (ConnReady, 256),
    0x12: (ConnRefused, 1024),
}
"""Frame type → (struct, largest body in bytes)."""
