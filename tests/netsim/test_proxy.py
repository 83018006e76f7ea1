"""The simulated network does to datagrams what it says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.aio import polled, until
from tests.netsim.proxy import Conditions, Proxy

FAMILIES = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


class Peer:
    """A UDP socket that collects what comes; ``echo``: and sends it back."""

    def __init__(self, host: str, echo: bool = False) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((host, 0))
        self.got: list[bytes] = []
        self.sources: list[int] = []
        self._echo = echo
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._read)

    @property
    def address(self) -> tuple[str, int]:
        return self.socket.getsockname()[:2]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = self.socket.recvfrom(65_535)
                self.got.append(data)
                self.sources.append(source[1])
                if self._echo:
                    self.socket.sendto(data, source)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self.socket.close()


async def send_all(peer: Peer, proxy: Proxy, count: int) -> None:
    for number in range(count):
        peer.socket.sendto(number.to_bytes(4, "big"), proxy.address)
        if number % 32 == 31:
            await polled()


def numbers(got: list[bytes]) -> list[int]:
    return [int.from_bytes(data, "big") for data in got]


@pytest.mark.parametrize("host", FAMILIES)
async def test_a_good_network_passes_everything_in_order(host: str) -> None:
    server, client = Peer(host, echo=True), Peer(host)
    async with Proxy(server.address) as proxy:
        await send_all(client, proxy, 200)
        await until(lambda: len(client.got) == 200)
        assert numbers(server.got) == numbers(client.got) == list(range(200))
    server.close()
    client.close()


async def test_many_clients_are_kept_apart() -> None:
    server = Peer("127.0.0.1", echo=True)
    clients = [Peer("127.0.0.1") for _ in range(20)]
    async with Proxy(server.address) as proxy:
        for number, client in enumerate(clients):
            client.socket.sendto(b"%d" % number, proxy.address)
        await until(lambda: all(client.got for client in clients))
        assert [client.got for client in clients] == [[b"%d" % number] for number in range(20)]
        assert len(set(server.sources)) == 20
    for peer in (server, *clients):
        peer.close()


async def test_loss_takes_its_share_and_the_seed_decides_which() -> None:
    async def lost(seed: int) -> list[int]:
        server, client = Peer("127.0.0.1"), Peer("127.0.0.1")
        async with Proxy(server.address, Conditions(loss=0.2), seed=seed) as proxy:
            await send_all(client, proxy, 1000)
            await until(lambda: proxy.counters.forwarded + proxy.counters.dropped == 1000)
            await until(lambda: len(server.got) == proxy.counters.forwarded)
        server.close()
        client.close()
        return sorted(set(range(1000)) - set(numbers(server.got)))

    first, again, other = await lost(1), await lost(1), await lost(2)
    assert 140 < len(first) < 260
    assert first == again
    assert first != other


async def test_duplicates_arrive_twice() -> None:
    server, client = Peer("127.0.0.1"), Peer("127.0.0.1")
    async with Proxy(server.address, Conditions(duplicate=1.0)) as proxy:
        await send_all(client, proxy, 10)
        await until(lambda: len(server.got) == 20)
        assert sorted(numbers(server.got)) == sorted(2 * list(range(10)))
    server.close()
    client.close()


async def test_reordered_datagrams_are_overtaken_and_none_is_lost() -> None:
    server, client = Peer("127.0.0.1"), Peer("127.0.0.1")
    async with Proxy(server.address, Conditions(reorder=0.3)) as proxy:
        await send_all(client, proxy, 300)
        await until(lambda: len(server.got) == 300)
        assert numbers(server.got) != list(range(300))
        assert sorted(numbers(server.got)) == list(range(300))
        assert proxy.counters.reordered > 30
    server.close()
    client.close()


async def test_delay_holds_a_datagram_back() -> None:
    loop = asyncio.get_running_loop()
    server, client = Peer("127.0.0.1", echo=True), Peer("127.0.0.1")
    async with Proxy(server.address, Conditions(delay_s=0.05)) as proxy:
        started = loop.time()
        client.socket.sendto(b"x", proxy.address)
        await until(lambda: client.got)
        assert loop.time() - started >= 0.095  # both ways; timers of the loop are whole milliseconds
    server.close()
    client.close()


async def test_a_black_hole_swallows_the_direction_that_was_asked_for() -> None:
    server, client = Peer("127.0.0.1", echo=True), Peer("127.0.0.1")
    async with Proxy(server.address) as proxy:
        proxy.blackhole_to_client = True
        client.socket.sendto(b"one way", proxy.address)
        await until(lambda: proxy.counters.blackholed == 1)
        assert server.got == [b"one way"]
        proxy.blackhole(True)
        client.socket.sendto(b"no way", proxy.address)
        await until(lambda: proxy.counters.blackholed == 2)
        proxy.blackhole(False)
        client.socket.sendto(b"both ways", proxy.address)
        await until(lambda: client.got == [b"both ways"])
        assert server.got == [b"one way", b"both ways"]
    server.close()
    client.close()


@pytest.mark.parametrize("host", FAMILIES)
async def test_rebinding_changes_the_source_port_and_answers_follow(host: str) -> None:
    server, client = Peer(host, echo=True), Peer(host)
    async with Proxy(server.address) as proxy:
        for round_ in range(4):
            client.socket.sendto(b"%d" % round_, proxy.address)
            await until(lambda wanted=round_ + 1: len(client.got) == wanted)
            proxy.rebind()
        assert len(set(server.sources)) == 4
        assert proxy.counters.rebinds == 4
    server.close()
    client.close()


async def test_rebinding_by_itself() -> None:
    server, client = Peer("127.0.0.1"), Peer("127.0.0.1")
    async with Proxy(server.address, rebind_every_s=0.02) as proxy:
        client.socket.sendto(b"x", proxy.address)
        await until(lambda: proxy.counters.rebinds >= 3)
    server.close()
    client.close()


async def test_a_network_that_changes() -> None:
    server, client = Peer("127.0.0.1"), Peer("127.0.0.1")
    async with Proxy(server.address, rebind_every_s=0.01) as proxy:
        client.socket.sendto(b"first", proxy.address)
        await until(lambda: proxy.counters.rebinds > 0)
        proxy.change(Conditions(mtu_bytes=10))
        rebinds = proxy.counters.rebinds
        client.socket.sendto(b"eleven long", proxy.address)
        client.socket.sendto(b"ten - long", proxy.address)
        await until(lambda: len(server.got) == 2)
        assert server.got == [b"first", b"ten - long"]
        assert (proxy.counters.too_large, proxy.counters.rebinds) == (1, rebinds)
        proxy.change(Conditions(), rebind_every_s=0.01)
        await until(lambda: proxy.counters.rebinds > rebinds)
    server.close()
    client.close()
