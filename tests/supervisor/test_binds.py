from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from qmux.config.schema import (
    ClientConfig,
    ListenAddress,
    ProcessConfig,
    QuicConfig,
    ServerConfig,
    ServiceConfig,
    TlsFiles,
)
from qmux.errors import StartError
from supervisor.binds import Binds, wanted_binds
from tests.supervisor.daemons import free_port

PROCESS = ProcessConfig(tls=TlsFiles())
HOST = "127.0.0.1"


def server(quic: tuple[ListenAddress, ...] = (), **services: ServiceConfig) -> ServerConfig:
    return ServerConfig(source="x", process=PROCESS, quic=QuicConfig(bind=quic), services=services)


def service(name: str, *ports: int, quic: tuple[ListenAddress, ...] = ()) -> ServiceConfig:
    return ServiceConfig(name=name, bind=tuple(ListenAddress(HOST, port) for port in ports), quic_bind=quic)


@pytest.fixture
def binds() -> Iterator[Binds]:
    found = Binds(2, 2)
    yield found
    found.close()


def test_what_a_configuration_wants() -> None:
    shared, own = ListenAddress(HOST, 8443), ListenAddress(HOST, 8444)
    config = server((shared,), a=service("a", 80, quic=(shared,)), b=service("b", 443, quic=(own,)))
    assert [(want.bind.purpose, want.bind.port, want.service, want.config_key) for want in wanted_binds(config)] == [
        ("quic", 8443, "", "quic.bind"),
        ("quic", 8444, "", "services.b.quic_bind"),
        ("traffic", 80, "a", "services.a.bind"),
        ("traffic", 443, "b", "services.b.bind"),
    ]
    assert wanted_binds(ClientConfig(source="x", process=PROCESS, servers=(), services={})) == []


def test_only_the_difference_is_touched(binds: Binds) -> None:
    stays, goes, comes = free_port(), free_port(), free_port()
    binds.commit(binds.prepare(server(a=service("a", stays, goes))))
    kept = next(opened for opened in binds if opened.wanted.bind.port == stays).groups
    difference = binds.prepare(server(a=service("a", stays, comes)))
    assert [opened.wanted.bind.port for opened in difference.opened] == [comes]
    assert [opened.wanted.bind.port for opened in difference.removed] == [goes]
    binds.commit(difference)
    assert {opened.wanted.bind.port for opened in binds} == {stays, comes}
    assert next(opened for opened in binds if opened.wanted.bind.port == stays).groups is kept
    for opened in difference.removed:
        opened.close()


def test_an_address_that_changes_its_service_stays_open(binds: Binds) -> None:
    port = free_port()
    binds.commit(binds.prepare(server(a=service("a", port))))
    difference = binds.prepare(server(b=service("b", port)))
    assert (difference.opened, difference.removed, len(difference.passed)) == ([], [], 1)
    binds.commit(difference)
    (opened,) = binds
    assert opened.keys(1) == [f"traffic|tcp|b|{HOST}:{port}|1"]


def test_what_cannot_be_opened_leaves_nothing_behind(binds: Binds) -> None:
    first = free_port()
    with socket.socket() as other:
        other.bind((HOST, 0))
        with pytest.raises(StartError, match=r"\(services.a.bind\)"):
            binds.prepare(server(a=service("a", first, other.getsockname()[1])))
    assert list(binds) == []
    binds.commit(binds.prepare(server(a=service("a", first))))


def test_each_worker_gets_its_share(binds: Binds) -> None:
    binds.commit(binds.prepare(server((ListenAddress("", 0),), a=service("a", free_port()))))
    quic, traffic = binds
    messages = list(quic.messages(1))
    assert [message.key.split("|")[0::3] for message, _ in messages] == [["quic", "1"], ["quic", "1"]]
    assert [message.address.rsplit(":", 1)[0] for message, _ in messages] == ["0.0.0.0", "[::]"]
    ((message, fd),) = traffic.messages(0)
    assert (message.purpose, message.protocol, message.service, message.address) == (
        "traffic",
        "tcp",
        "a",
        traffic.groups[0].address,
    )
    assert fd == traffic.groups[0].sockets[0].fileno()


def test_every_address_of_a_service_is_told(binds: Binds) -> None:
    first, second, quic, own = (free_port() for _ in range(4))
    shared = service("a", first, second, quic=(ListenAddress(HOST, own),))
    binds.commit(binds.prepare(server((ListenAddress(HOST, quic),), a=shared)))
    assert binds.addresses() == {
        "quic": [f"{HOST}:{quic}", f"{HOST}:{own}"],
        "traffic:a": [f"{HOST}:{first}", f"{HOST}:{second}"],
    }


def test_more_workers_get_sockets_of_every_address(binds: Binds) -> None:
    port = free_port()
    binds.commit(binds.prepare(server((ListenAddress(HOST, free_port()),), a=service("a", port))))
    quic, traffic = binds
    before = [list(group.sockets) for opened in binds for group in opened.groups]
    binds.grow(4, 3)
    assert [len(quic.groups[0].sockets), len(traffic.groups[0].sockets)] == [4, 3]
    assert [group.sockets[:2] for opened in binds for group in opened.groups] == before
    # ... and so does what is opened from now on.
    binds.commit(binds.prepare(server((quic.wanted.bind.address,), a=service("a", port, free_port()))))
    assert [len(opened.groups[0].sockets) for opened in binds] == [4, 3, 3]
