"""The seam between QMux and a QUIC implementation. Nothing above this module knows which engine runs.

The seam sits at the relay: ``Stream.relay`` takes a socket, and from then on the users' bytes are the engine's
business, so that they need never become Python objects. What crosses here as bytes is only what QMux itself says:
frames on the control stream and at the head of a stream.

Everything runs on one event loop and is not thread-safe. Handler methods return at once.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from qmux.heard import SAID_BYTES, heard
from qmux.pki.identity import Identity
from qmux.pki.material import Keys, Material
from qmux.pool.rows import EndpointStats as EndpointStats
from qmux.quic.tickets import Tickets

ALPN = "qmux-tunnel/1"
"""The major version of the client ↔ server protocol."""

JUDGEMENT_BYTES = 800
"""Why we do not accept a certificate: words of ours, which quote names in it (``qmux.pki.verify``)."""


class StreamError(Exception):
    """The peer ended this stream abruptly. ``code``: its application error code (RFC 9000 §20.2)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream ended by peer with code {code:#x}")
        self.code = code


class ConnectionLost(Exception):
    """The connection under a stream is gone; ``reason`` says why."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class StreamLimit(Exception):
    """The peer allows no more streams on this connection at the moment."""


class CloseKind(enum.StrEnum):
    """How a connection ended."""

    LOCAL = "local"  # we closed it
    APPLICATION = "application"  # the peer's QMux closed it, with a code of qmux.protocol
    TRANSPORT = "transport"  # the peer's QUIC closed it (RFC 9000 §20.1)
    TLS = "tls"  # either side's TLS refused: ``code`` is the alert (RFC 8446 §6)
    IDLE = "idle"  # nothing heard for the idle timeout
    RESET = "reset"  # stateless reset: the other end has no such connection (RFC 9000 §10.3)
    REFUSED = "refused"  # nothing listens on that UDP port (ICMP)
    UNREACHABLE = "unreachable"  # no route, the network is down, a firewall: ``code`` is the errno
    TIMEOUT = "timeout"  # the handshake was never answered
    CERTIFICATE = "certificate"  # we did not accept the peer's certificate; ``message`` says why


class CloseReason(msgspec.Struct, frozen=True):
    """Why a connection ended. ``message`` is a peer's, or quotes one, so it is kept as it may be shown: up to 64 KiB of
    anything come with a CONNECTION_CLOSE frame.
    """

    kind: CloseKind
    code: int = 0
    message: str = ""

    def __post_init__(self) -> None:
        limit_bytes = JUDGEMENT_BYTES if self.kind is CloseKind.CERTIFICATE else SAID_BYTES
        msgspec.structs.force_setattr(self, "message", heard(self.message, limit_bytes))

    def __str__(self) -> str:
        code = f" {self.code:#x}" if self.code else ""
        return f"{self.kind}{code}{': ' if self.message else ''}{self.message}"


class RelayEnd(enum.StrEnum):
    """Why a relay ended."""

    FINISHED = "finished"  # both directions reached FIN
    SOCKET_RESET = "socket_reset"  # RST or error on the socket; told to the peer with RESET_STREAM and STOP_SENDING
    STREAM_RESET = "stream_reset"  # the peer reset or stopped the stream; the socket got RST
    CONNECTION_LOST = "connection_lost"
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSED_TIMEOUT = "half_closed_timeout"
    ABORTED = "aborted"  # ``abort`` was called

    @property
    def is_usual(self) -> bool:
        """Whether one of the two ends wanted it."""
        return self in (RelayEnd.FINISHED, RelayEnd.SOCKET_RESET, RelayEnd.STREAM_RESET)


class RelayLimits(msgspec.Struct, frozen=True):
    """How long a relay may be silent. ``idle_timeout_s`` None: for ever."""

    idle_timeout_s: float | None = None
    half_closed_timeout_s: float = 300.0


class Relay(Protocol):
    """A running relay between one stream and one socket, which it owns."""

    done: asyncio.Future[RelayEnd]
    """Resolved once, when both halves are closed and the socket is. Never raises, never cancelled by the engine."""

    @property
    def bytes_to_socket(self) -> int:
        """Bytes written to the socket so far."""
        ...

    @property
    def bytes_to_stream(self) -> int:
        """Bytes read from the socket so far."""
        ...

    def abort(self) -> None:
        """RST to the socket, RESET_STREAM and STOP_SENDING to the peer."""
        ...


class Stream(Protocol):
    """A bidirectional stream (RFC 9000 §2) up to the moment when ``relay`` takes it."""

    @property
    def stream_id(self) -> int:
        """The QUIC stream ID (RFC 9000 §2.1)."""
        ...

    @property
    def connection(self) -> Connection:
        """The connection that it belongs to."""
        ...

    async def read(self, limit_bytes: int) -> bytes:
        """At least 1 and at most ``limit_bytes`` bytes, in order; ``b""`` at FIN. Never takes more than asked: what
        follows stays for the next read or the relay. One reader at a time; cancelling loses nothing.

        Raises StreamError, ConnectionLost.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Queue ``data``; returns when the stream's send buffer has room for more. Several may wait at once: their
        bytes go out in the order of the calls.

        Raises StreamError when the peer stopped the stream, ConnectionLost.
        """
        ...

    def finish(self) -> None:
        """FIN after what was written."""
        ...

    def abort(self, code: int) -> None:
        """RESET_STREAM what we send and STOP_SENDING what we receive; idempotent; frees the stream."""
        ...

    def set_priority(self, priority: int) -> None:
        """Higher is sent first; streams start at 0, the control stream uses 1."""
        ...

    def relay(self, sock: socket.socket, limits: RelayLimits) -> Relay:
        """Hand both over to the engine: raw bytes from now on, FIN ↔ half-close, RST ↔ RESET_STREAM + STOP_SENDING.

        ``sock`` is non-blocking and connected; the engine detaches and closes its descriptor.
        """
        ...


class ConnectionHandler(Protocol):
    """What a connection tells the layer above. No method may block or raise."""

    def connected(self) -> None:
        """The handshake is confirmed and the peer's certificate verified. Once, before anything else but ``closed``."""
        ...

    def stream_opened(self, stream: Stream) -> None:
        """The peer opened a bidirectional stream."""
        ...

    def datagram_received(self, data: bytes) -> None:
        """A DATAGRAM frame (RFC 9221)."""
        ...

    def closed(self, reason: CloseReason) -> None:
        """The connection is gone. Exactly once, last."""
        ...


class ConnectionStats(msgspec.Struct, frozen=True):
    """Figures of one connection."""

    rtt_s: float
    pto_s: float
    sent_bytes: int
    received_bytes: int
    sent_packets: int
    lost_packets: int
    mtu_bytes: int
    cwnd_bytes: int


class Connection(Protocol):
    """A QUIC connection, from ``Endpoint.connect`` or handed to the acceptor."""

    @property
    def number(self) -> int:
        """Counts the connections of this process, for logs."""
        ...

    @property
    def identity(self) -> Identity | None:
        """Who the peer's certificate says it is; None on a client (whose peer is a server) and before ``connected``."""
        ...

    @property
    def resumed(self) -> bool:
        """Whether it resumed an earlier session, with no certificate sent. Known from ``connected`` on."""
        ...

    @property
    def early_data_accepted(self) -> bool:
        """Whether what the client wrote before ``connected`` came with its first packets (0-RTT). Known from
        ``connected`` on.
        """
        ...

    @property
    def may_write_early(self) -> bool:
        """On a client, right after ``Engine.connect``: whether streams can be opened and written before ``connected``.
        Somebody may send such packets again (RFC 8446 §8), so only what may come twice is written so. Where the server
        does not take them, the engine writes it again; ``connected`` comes first at both ends in any case.
        """
        ...

    @property
    def peer_address(self) -> tuple[str, int]:
        """Where the peer's packets come from now."""
        ...

    @property
    def peer_slot(self) -> int | None:
        """The slot in the peer's connection ID: on a client, the worker that answered."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether it has ended; ``closed`` was called or is about to be."""
        ...

    @property
    def last_received_at(self) -> float:
        """``time.monotonic()`` of the newest authenticated packet."""
        ...

    @property
    def ack_eliciting_outstanding(self) -> bool:
        """Whether we sent something that the peer must acknowledge and has not."""
        ...

    @property
    def max_datagram_size(self) -> int:
        """Largest payload for ``send_datagram`` now; 0 where the peer takes none."""
        ...

    def open_stream(self) -> Stream:
        """Raises StreamLimit, ConnectionLost."""
        ...

    def send_datagram(self, data: bytes) -> bool:
        """Queue one DATAGRAM; False (and counted) where it is too large or the queue is full."""
        ...

    def ping(self) -> None:
        """Send a PING now."""
        ...

    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        """After registration: how many streams the peer may open, and the receive window of each."""
        ...

    def close(self, code: int, reason: str) -> None:
        """CONNECTION_CLOSE with an application code; ``closed`` follows with kind LOCAL. Idempotent."""
        ...

    def stats(self) -> ConnectionStats:
        """Its figures now."""
        ...


def handshake_of(connection: Connection) -> str:
    """How a connected one came about, for the log; "resumed early": with 0-RTT."""
    if not connection.resumed:
        return "full"
    return "resumed early" if connection.early_data_accepted else "resumed"


Acceptor = Callable[[Connection], ConnectionHandler]
"""Called by a server endpoint for a new connection, before its handshake is complete."""


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint works with. ``slot`` goes into every connection ID it issues.

    ``unregistered_window_bytes``: a peer's whole receive window until ``raise_limits``; likewise one stream.
    ``stream_window_bytes``: what ``raise_limits`` will say, for engines that cannot widen a stream later.
    ``datagrams``: whether a peer may send DATAGRAM frames (RFC 9221); nothing above takes any yet.
    """

    slot: int
    material: Material
    keys: Keys
    idle_timeout_s: float
    keep_alive_s: float
    handshake_timeout_s: float
    retry_threshold: int
    max_connections: int
    unregistered_window_bytes: int = 65_536
    stream_window_bytes: int = 1 << 20
    datagrams: bool = False


class ConnectConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one outgoing connection needs. ``lane`` None: first contact, the lane of the newest ticket, or one drawn at
    random. ``tickets``: what can be resumed, and where new tickets go; None: neither. ``datagrams``: as a server's.
    """

    material: Material
    server_name: str
    lane: int | None
    idle_timeout_s: float
    keep_alive_s: float
    handshake_timeout_s: float
    max_streams: int
    stream_window_bytes: int
    tickets: Tickets | None = None
    datagrams: bool = False


@runtime_checkable
class Endpoint(Protocol):
    """A server's side of one slot: its UDP sockets and every connection on them."""

    def add_socket(self, sock: socket.socket) -> None:
        """Read and answer on one more inherited UDP socket; the endpoint owns it."""
        ...

    def reconfigure(self, config: EndpointConfig) -> None:
        """Use another configuration of the same ``slot`` and ``keys``.

        ``retry_threshold`` and ``max_connections`` hold at once, the rest for connections that begin from now on.
        Raises CertificateError; then nothing changes.
        """
        ...

    def set_live_slots(self, slots: Sequence[int]) -> None:
        """Slots with a live worker: another one's packets are not answered with a stateless reset."""
        ...

    def refuse_new(self, refuse: bool) -> None:
        """Answer Initials with CONNECTION_REFUSED (while stopping)."""
        ...

    def stats(self) -> EndpointStats:
        """The counters since the start."""
        ...

    def close(self, code: int, reason: str) -> None:
        """CONNECTION_CLOSE on every connection, then close the sockets."""
        ...


class Engine(Protocol):
    """One QUIC implementation."""

    name: str

    def try_material(self, material: Material) -> None:
        """Load it as a handshake would, at either end. Raises CertificateError where this engine cannot use it."""
        ...

    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        """A server endpoint without sockets yet. Raises CertificateError."""
        ...

    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        """Start one outgoing connection on a UDP socket of its own (GRO merges by ports). ``address`` is numeric.

        Returns at once; ``handler`` hears how it goes. Raises CertificateError, OSError.
        """
        ...
