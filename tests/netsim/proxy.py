"""A UDP proxy that behaves like a bad network: it drops, delays, reorders, duplicates, black-holes and rebinds.

The kernel's netem is not everywhere, so the network is simulated here, between two real sockets. Every client gets an
upstream socket of its own, as behind a NAT; ``rebind`` replaces it, so that the server sees another source port.
Seeded: the same datagrams in the same order meet the same fate.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

Address = tuple[Any, ...]

BUFFER_BYTES = 4 << 20
BATCH = 64
REORDER_HOLD_S = 0.005
"""How long a reordered datagram is held back: at test speeds several others overtake it."""


@dataclass(frozen=True)
class Conditions:
    """What happens to datagrams of one direction. Shares are 0…1."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    mtu_bytes: int = 65_535
    """Of the UDP payload; what is larger vanishes, as on a path that drops what does not fit and does not say so."""


@dataclass
class Counters:
    """What the proxy did, both directions together."""

    forwarded: int = 0
    dropped: int = 0
    blackholed: int = 0
    too_large: int = 0
    duplicated: int = 0
    reordered: int = 0
    rebinds: int = 0


@dataclass
class _Client:
    address: Address
    upstream: socket.socket


class Proxy:
    """Between many clients and one server. ``async with Proxy(server) as proxy``; clients talk to ``proxy.address``."""

    def __init__(
        self,
        server: tuple[str, int],
        conditions: Conditions = Conditions(),
        back: Conditions | None = None,
        *,
        seed: int = 1,
        rebind_every_s: float | None = None,
    ) -> None:
        self.to_server = conditions
        self.to_client = conditions if back is None else back
        self.blackhole_to_server = False
        self.blackhole_to_client = False
        self.counters = Counters()
        self.tap: Callable[[bytes, bool], None] = lambda data, up: None
        """Sees every datagram before its fate is decided; ``up``: towards the server."""
        self._server = server
        self._random = random.Random(seed)
        self._rebind_every_s = rebind_every_s
        self._rebind_timer: asyncio.TimerHandle | None = None
        self._clients: dict[Address, _Client] = {}
        self._loop = asyncio.get_running_loop()
        self._family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._front = self._open(("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0))

    async def __aenter__(self) -> Proxy:
        self._loop.add_reader(self._front.fileno(), self._from_clients)
        self._schedule_rebind()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rebind_timer is not None:
            self._rebind_timer.cancel()
        for client in self._clients.values():
            self._close(client.upstream)
        self._clients.clear()
        self._close(self._front)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients send to."""
        host, port = self._front.getsockname()[:2]
        return host, port

    @property
    def upstream_ports(self) -> list[int]:
        """The source ports that the server sees now, in the order of the clients' first datagrams."""
        return [client.upstream.getsockname()[1] for client in self._clients.values()]

    def blackhole(self, on: bool) -> None:
        """Swallow everything, in both directions."""
        self.blackhole_to_server = self.blackhole_to_client = on

    def change(self, conditions: Conditions, rebind_every_s: float | None = None) -> None:
        """Behave otherwise from now on, in both directions."""
        self.to_server = self.to_client = conditions
        if self._rebind_timer is not None:
            self._rebind_timer.cancel()
            self._rebind_timer = None
        self._rebind_every_s = rebind_every_s
        self._schedule_rebind()

    def change_server(self, server: tuple[str, int]) -> None:
        """Forward to another server from now on, from the same ports: a load balancer that changed its mind."""
        self._server = server
        for client in self._clients.values():
            client.upstream.connect(server)

    def inject(self, data: bytes) -> None:
        """Send a datagram to every client that the server did not send."""
        for client in self._clients.values():
            self._front.sendto(data, client.address)

    def rebind(self) -> None:
        """Every client gets another source port towards the server; what is on its way to the old one is lost."""
        for client in self._clients.values():
            old, client.upstream = client.upstream, self._upstream(client.address)
            self._close(old)
            self.counters.rebinds += 1

    # --- forwarding ---

    def _from_clients(self) -> None:
        for _ in range(BATCH):
            try:
                data, address = self._front.recvfrom(65_535)
            except (BlockingIOError, InterruptedError):
                return
            client = self._clients.get(address)
            if client is None:
                client = self._clients[address] = _Client(address, self._upstream(address))
            if self.blackhole_to_server:
                self.counters.blackholed += 1
                continue
            self._pass_on(self.to_server, client, data, up=True)

    def _from_server(self, address: Address, upstream: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data = upstream.recv(65_535)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionRefusedError:  # the server's port is closed: a NAT would lose this, too
                continue
            if self.blackhole_to_client:
                self.counters.blackholed += 1
                continue
            self._pass_on(self.to_client, self._clients[address], data, up=False)

    def _pass_on(self, conditions: Conditions, client: _Client, data: bytes, up: bool) -> None:
        self.tap(data, up)
        draw = self._random.random
        if draw() < conditions.loss:
            self.counters.dropped += 1
            return
        if len(data) > conditions.mtu_bytes:
            self.counters.too_large += 1
            return
        copies = 1
        if draw() < conditions.duplicate:
            copies = 2
            self.counters.duplicated += 1
        delay_s = conditions.delay_s + conditions.jitter_s * draw()
        if draw() < conditions.reorder:
            delay_s += REORDER_HOLD_S
            self.counters.reordered += 1
        for _ in range(copies):
            if delay_s > 0:
                self._loop.call_later(delay_s, self._deliver, client, data, up)
            else:
                self._deliver(client, data, up)

    def _deliver(self, client: _Client, data: bytes, up: bool) -> None:
        if self._front.fileno() < 0:
            return  # closed while this datagram was under way
        try:
            if up:
                client.upstream.send(data)
            else:
                self._front.sendto(data, client.address)
        except (BlockingIOError, ConnectionRefusedError):
            self.counters.dropped += 1
            return
        self.counters.forwarded += 1

    # --- sockets ---

    def _upstream(self, address: Address) -> socket.socket:
        sock = self._open()
        sock.connect(self._server)
        self._loop.add_reader(sock.fileno(), self._from_server, address, sock)
        return sock

    def _open(self, bind: tuple[str, int] | None = None) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        if bind is not None:
            sock.bind(bind)
        return sock

    def _close(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock.fileno())
        sock.close()

    def _schedule_rebind(self) -> None:
        if self._rebind_every_s is not None:
            self._rebind_timer = self._loop.call_later(self._rebind_every_s, self._rebind_again)

    def _rebind_again(self) -> None:
        self.rebind()
        self._schedule_rebind()
