"""A client's connections: a UDP socket for each, so that the kernel can merge and tell apart what comes back."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

from aioquic.tls import SessionTicket

from qmux import addresses, steering
from qmux.quic.aioquic_engine import udp
from qmux.quic.aioquic_engine.connection import Address, AioquicConnection
from qmux.quic.aioquic_engine.credentials import Credentials
from qmux.quic.aioquic_engine.mtu import SearchingConnection
from qmux.quic.aioquic_engine.overrides import RESET_TOKEN_BYTES, UNLIMITED_BYTES
from qmux.quic.engine import CloseKind, CloseReason, ConnectConfig, ConnectionHandler
from qmux.quic.tickets import Server, Ticket

BATCH = 64
SOCKET_BUFFER_BYTES = 4 << 20
"""EngineAttempt for; the kernel gives what ``rmem_max`` and ``wmem_max`` allow."""


def connect(
    address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler, loop: asyncio.AbstractEventLoop
) -> AioquicConnection:
    """Start one outgoing connection. Raises CertificateError, OSError."""
    sock = _open_socket(address)
    try:
        return _Outgoing(sock, address, config, handler, loop).connection
    except BaseException:
        sock.close()
        raise


class _Outgoing:
    """Ties a connected socket and an AioquicConnection together."""

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        config: ConnectConfig,
        handler: ConnectionHandler,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._peer: Address = sock.getpeername()
        self._config = config
        self._server = Server(address, config.server_name)
        lane, resumed = config.lane, None
        if config.tickets is not None:
            lane, resumed = config.tickets.take(self._server, config.lane, config.material)
        self._certificate_expires_at = 0.0 if resumed is None else resumed.expires_at
        credentials = Credentials(config.material)
        configuration = credentials.configuration(
            is_client=True,
            idle_timeout_s=config.idle_timeout_s,
            window_bytes=config.stream_window_bytes,
            datagrams=config.datagrams,
        )
        configuration.session_ticket = None if resumed is None else _session_of(resumed)
        quic = SearchingConnection(
            configuration=configuration,
            verifier=credentials.server_verifier(config.server_name, self._accepted, self._rejected),
            session_ticket_handler=self._keep_ticket,
            initial_destination_id=steering.initial_id(lane),
            max_streams=config.max_streams,
            connection_window_bytes=UNLIMITED_BYTES,
        )
        self.connection = AioquicConnection(
            quic,
            loop,
            send=self._send,
            on_disposed=self._disposed,
            keep_alive_s=config.keep_alive_s,
            handshake_timeout_s=config.handshake_timeout_s,
        )
        self.connection.set_handler(handler)
        loop.add_reader(sock.fileno(), self._on_readable)
        quic.connect(self._peer, time.monotonic())
        self.connection.wake()

    def _accepted(self, expires_at: int) -> None:
        self._certificate_expires_at = expires_at

    def _keep_ticket(self, session: SessionTicket) -> None:
        lane = self.connection.peer_slot
        if self._config.tickets is not None and lane is not None:
            ticket = Ticket(session, self._config.material, self._certificate_expires_at)
            self._config.tickets.put(self._server, lane, ticket)

    def _rejected(self, reason: str) -> None:
        self.connection.certificate_error = reason

    def _on_readable(self) -> None:
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                data = self._socket.recv(udp.MAX_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._network_failed(error)
                break
            if self._is_stateless_reset(data):
                self.connection.reset_received()
                return
            self.connection.receive(data, self._peer, now)
        if not self.connection.is_closed:
            self.connection.flush()

    def _is_stateless_reset(self, data: bytes) -> bool:
        """RFC 9000 §10.3.1; ours carry a random ID, so only an ID that we did not issue needs the comparison."""
        if len(data) < 5 + RESET_TOKEN_BYTES or data[0] & 0x80:
            return False
        quic = self.connection.quic
        if quic.issued(data[1 : 1 + steering.CONNECTION_ID_BYTES]):
            return False
        return quic.knows_reset_token(data[-RESET_TOKEN_BYTES:])

    def _send(self, data: bytes, _: Address) -> None:
        try:
            self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            pass  # a lost datagram: QUIC sends it again
        except OSError as error:
            self._network_failed(error)

    def _network_failed(self, error: OSError) -> None:
        # uvloop calls a reader once where a socket has an error, and never again (its ``UVPoll._fatal_error``).
        self._loop.call_soon(self._read_again)
        # Before the handshake an ICMP answer is all there is; later it can be forged (RFC 9000 §9 ignores it too).
        if self.connection.is_connected or self.connection.is_closed:
            return
        if error.errno == errno.ECONNREFUSED:
            reason = CloseReason(CloseKind.REFUSED, 0, "nothing listens on that UDP port")
        elif error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EPERM, errno.EACCES):
            reason = CloseReason(CloseKind.UNREACHABLE, error.errno, error.strerror or str(error))
        else:
            return
        self._loop.call_soon(self.connection.fail, reason)

    def _read_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _disposed(self, _: AioquicConnection) -> None:
        self._loop.call_soon(self._close)  # the socket may be in use further up the call stack

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


def _session_of(ticket: Ticket) -> SessionTicket:
    assert isinstance(ticket.session, SessionTicket), "a store belongs to one engine"
    return ticket.session


def _open_socket(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        udp.forbid_fragments(sock)
        sock.connect(addresses.socket_address(*address))
    except OSError:
        sock.close()
        raise
    return sock
