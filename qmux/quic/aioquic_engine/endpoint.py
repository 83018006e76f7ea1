"""A server's side of one slot: datagrams from its sockets to connections, and what is answered without one.

What has no connection is answered statelessly or dropped, always counted: an Initial opens a connection, or gets a
Retry while many handshakes are half open, or CONNECTION_REFUSED while we stop; a short header with an unknown ID
gets a stateless reset, unless its ID belongs to another live slot.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Sequence

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.packet import QuicHeader, QuicPacketType, pull_quic_header
from typing_extensions import override

from qmux import steering
from qmux.quic.aioquic_engine import udp
from qmux.quic.aioquic_engine.connection import Address, AioquicConnection
from qmux.quic.aioquic_engine.credentials import Credentials
from qmux.quic.aioquic_engine.mtu import SearchingConnection
from qmux.quic.aioquic_engine.resumption import Client, Sessions
from qmux.quic.aioquic_engine.stateless import StatelessResets, refuse_initial, retry, version_negotiation
from qmux.quic.aioquic_engine.tokens import RetryTokens
from qmux.quic.engine import Acceptor, Endpoint, EndpointConfig, EndpointStats

log = logging.getLogger(__name__)

BATCH = 64
"""Datagrams taken from a socket in one turn: then the connections send, and the loop's other callbacks run."""

HALF_OPEN_CAP_FACTOR = 10
"""Even validated addresses may have at most this many times ``retry_threshold`` handshakes half open."""


class AioquicEndpoint(Endpoint):
    """One endpoint for all sockets of a slot: aioquic itself knows connections only."""

    def __init__(self, config: EndpointConfig, acceptor: Acceptor, loop: asyncio.AbstractEventLoop) -> None:
        self._acceptor = acceptor
        self._loop = loop
        self._sockets: list[socket.socket] = []
        self._by_id: dict[bytes, AioquicConnection] = {}
        self._ids: dict[AioquicConnection, set[bytes]] = {}
        self._tokens = RetryTokens(config.keys.retry)
        self._sessions = Sessions()
        self._live_slots: frozenset[int] = frozenset({config.slot})
        self._refuse = False
        self._is_closed = False
        self._stats = EndpointStats()
        self._failed_at: deque[float] = deque()
        self._resets = StatelessResets()
        self._paths: dict[AioquicConnection, tuple[socket.socket, udp.LocalAddress | None]] = {}
        self._apply(config)

    # --- the seam ---

    @override
    def add_socket(self, sock: socket.socket) -> None:
        if self._is_closed:
            sock.close()
            return
        sock.setblocking(False)
        udp.forbid_fragments(sock)
        self._sockets.append(sock)
        self._loop.add_reader(sock.fileno(), self._on_readable, sock)

    @override
    def reconfigure(self, config: EndpointConfig) -> None:
        self._apply(config)

    def _apply(self, config: EndpointConfig) -> None:
        credentials = Credentials(config.material)
        self._quic_config = credentials.configuration(
            is_client=False,
            idle_timeout_s=config.idle_timeout_s,
            window_bytes=config.unregistered_window_bytes,
            datagrams=config.datagrams,
        )
        self._credentials = credentials
        self._config = config
        self._failed_at = deque(self._failed_at, maxlen=max(1, config.retry_threshold))

    @override
    def set_live_slots(self, slots: Sequence[int]) -> None:
        self._live_slots = frozenset({*slots, self._config.slot})

    @override
    def refuse_new(self, refuse: bool) -> None:
        self._refuse = refuse

    @override
    def stats(self) -> EndpointStats:
        self._stats.connections = len(self._ids)
        self._stats.tickets_refused = self._sessions.refused
        return self._stats

    @override
    def close(self, code: int, reason: str) -> None:
        self._is_closed = True
        for connection in list(self._ids):
            connection.close(code, reason)
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    # --- datagrams ---

    def _on_readable(self, sock: socket.socket) -> None:
        now = time.monotonic()
        touched: dict[AioquicConnection, None] = {}
        for _ in range(BATCH):
            try:
                data, address, local = udp.receive(sock)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:  # a pending ICMP error of an earlier answer; the next read goes on
                log.debug("UDP receive failed", extra={"reason": error})
                continue
            self._stats.datagrams_received += 1
            if (connection := self._route(sock, data, address, local)) is not None:
                connection.receive(data, address, now)
                touched[connection] = None
        for connection in touched:
            connection.flush()

    def _route(
        self, sock: socket.socket, data: bytes, address: Address, local: udp.LocalAddress | None
    ) -> AioquicConnection | None:
        if (
            data and not data[0] & 0x80
        ):  # a short header: the ID follows (RFC 9000 §17.3.1), nothing else is to be known
            connection = self._by_id.get(data[1 : 1 + steering.CONNECTION_ID_BYTES])
            if connection is not None:
                self._paths[connection] = (sock, local)
                return connection
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=steering.CONNECTION_ID_BYTES)
        except ValueError:
            self._stats.datagrams_invalid += 1
            return None
        connection = self._by_id.get(header.destination_cid)
        if connection is None:
            connection = self._without_connection(sock, data, header, address, local)
        if connection is not None:
            self._paths[connection] = (sock, local)
        return connection

    def _without_connection(
        self,
        sock: socket.socket,
        data: bytes,
        header: QuicHeader,
        address: Address,
        local: udp.LocalAddress | None,
    ) -> AioquicConnection | None:
        issuer = steering.issued_slot(header.destination_cid)
        if issuer is not None and issuer != self._config.slot and issuer in self._live_slots:
            self._stats.foreign_packets += 1
            return None
        answer: bytes | None = None
        if header.packet_type == QuicPacketType.ONE_RTT:
            answer = self._stateless_reset(data, header)
        elif header.version is not None and header.version not in self._quic_config.supported_versions:
            answer = self._version_negotiation(data, header)
        elif header.packet_type == QuicPacketType.INITIAL and len(data) >= SMALLEST_MAX_DATAGRAM_SIZE:
            opened = self._initial(header, address)
            if isinstance(opened, AioquicConnection):
                return opened
            answer = opened
        else:
            self._stats.unknown_connection += 1
        if answer is not None:
            self._stats.datagrams_sent += udp.send(sock, answer, address, local)
        return None

    def _stateless_reset(self, data: bytes, header: QuicHeader) -> bytes | None:
        self._stats.unknown_connection += 1
        reset = self._resets.answer(self._config.keys.stateless_reset, header.destination_cid, len(data))
        self._stats.stateless_resets_sent += reset is not None
        return reset

    def _version_negotiation(self, data: bytes, header: QuicHeader) -> bytes | None:
        answer = version_negotiation(header, len(data), self._quic_config.supported_versions)
        self._stats.datagrams_invalid += answer is None
        return answer

    # --- new connections ---

    def _initial(self, header: QuicHeader, address: Address) -> AioquicConnection | bytes | None:
        if not steering.has_initial_form(header.destination_cid):
            self._stats.unknown_connection += 1
            return None
        if self._refuse or len(self._ids) >= self._config.max_connections:
            self._stats.initials_refused += 1
            return refuse_initial(header)
        original_id = self._tokens.open(header.token, address[:2]) if header.token else None
        if original_id is None and self._handshake_load() >= self._config.retry_threshold:
            return self._retry(header, address)
        if self._stats.half_open >= max(1, self._config.retry_threshold) * HALF_OPEN_CAP_FACTOR:
            self._stats.initials_refused += 1
            return None
        return self._accept(header, original_id)

    def _handshake_load(self) -> int:
        """Handshakes that are half open or failed within that time: a flood that fails at once costs as much."""
        since = time.monotonic() - self._config.handshake_timeout_s
        while self._failed_at and self._failed_at[0] < since:
            self._failed_at.popleft()
        return self._stats.half_open + len(self._failed_at)

    def _retry(self, header: QuicHeader, address: Address) -> bytes:
        self._stats.retries_sent += 1
        # Initial form: any active worker may get what follows, and the key is shared.
        source_id = steering.initial_id(self._config.slot)
        return retry(header, source_id, self._tokens.issue(address[:2], header.destination_cid))

    def _accept(self, header: QuicHeader, original_id: bytes | None) -> AioquicConnection:
        client = Client(self._credentials.identity, self._sessions)
        quic = SearchingConnection(
            configuration=self._quic_config,
            verifier=client.verify,
            session_ticket_fetcher=client.fetch,
            session_ticket_handler=client.issued,
            slot=self._config.slot,
            stateless_reset_key=self._config.keys.stateless_reset,
            original_destination_connection_id=original_id or header.destination_cid,
            retry_source_connection_id=header.destination_cid if original_id else None,
            connection_window_bytes=self._config.unregistered_window_bytes,
        )
        connection = AioquicConnection(
            quic,
            self._loop,
            send=lambda data, to: self._send(connection, data, to),
            on_disposed=self._disposed,
            keep_alive_s=self._config.keep_alive_s,
            handshake_timeout_s=self._config.handshake_timeout_s,
        )

        def on_connected() -> None:
            connection.identity = client.identity
            self._stats.half_open -= 1
            self._stats.handshakes_completed += 1
            self._stats.handshakes_resumed += connection.resumed

        connection.on_connected = on_connected
        connection.on_id_issued = lambda issued: self._add_id(connection, issued)
        connection.on_id_retired = lambda retired: self._remove_id(connection, retired)
        self._stats.half_open += 1
        self._ids[connection] = set()
        self._add_id(connection, header.destination_cid)
        self._add_id(connection, quic.host_cid)
        connection.set_handler(self._acceptor(connection))
        return connection

    def _add_id(self, connection: AioquicConnection, connection_id: bytes) -> None:
        self._by_id[connection_id] = connection
        self._ids[connection].add(connection_id)

    def _remove_id(self, connection: AioquicConnection, connection_id: bytes) -> None:
        self._by_id.pop(connection_id, None)
        self._ids[connection].discard(connection_id)

    def _disposed(self, connection: AioquicConnection) -> None:
        for connection_id in self._ids.pop(connection, ()):
            self._by_id.pop(connection_id, None)
        self._paths.pop(connection, None)
        if not connection.is_connected:
            self._stats.half_open -= 1
            self._stats.handshakes_failed += 1
            self._failed_at.append(time.monotonic())

    def _send(self, connection: AioquicConnection, data: bytes, address: Address) -> None:
        sock, local = self._paths[connection]
        if sock.fileno() < 0:
            return  # the endpoint is closed
        if udp.send(sock, data, address, local):
            self._stats.datagrams_sent += 1
        else:
            self._stats.send_blocked += 1
