"""Server and client on two hosts: network namespaces joined by a veth pair, with the user on the server's host.

What loopback cannot show: an MTU, an interface that goes down, an address that changes, packets that vanish.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from qmux.pki import authority
from tests.daemons import Daemon, Deployment
from tests.integration.services import Handler, Service, digest, echo, pattern
from tests.integration.test_tunnel import exchange
from tests.integration.users import ask, read_exactly
from tests.waiting import lasts, until

CLONE_NEWNET = 0x40000000  # sched.h
QUIC_PORT, TRAFFIC_PORT = 8443, 8080
SERVER_V4, CLIENT_V4, OTHER_V4 = "10.77.0.1", "10.77.0.2", "10.77.0.3"
SERVER_V6, CLIENT_V6 = "fd77::1", "fd77::2"
NOWHERE = "02:00:00:00:00:fe"
"""A link-layer address that nobody has: what goes there vanishes without an error."""

QUICK = 'resolve_interval = "1s"\nconnect_timeout = "1s"\nreconnect_max = "1s"\n'


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host:
    """One network namespace with one end of the veth pair."""

    interface = "veth0"

    def __init__(self, name: str) -> None:
        self.name = name
        _ip("netns", "add", name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        """``ip`` inside the namespace."""
        _ip("-n", self.name, *arguments)

    def address(self, *addresses: str) -> None:
        """Give the interface these, at once usable (``nodad``)."""
        for address in addresses:
            self.ip("addr", "add", address, "dev", self.interface, *(["nodad"] if ":" in address else []))

    @property
    def run(self) -> tuple[str, ...]:
        """What to put before a command that shall run here."""
        return ("ip", "netns", "exec", self.name)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that this thread makes, and threads that it starts, belong to the namespace."""
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self.name}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())

    def close(self) -> None:
        _ip("netns", "delete", self.name)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Pair:
    """Two hosts on one cable, a server on one and a client of service ``web`` on the other."""

    server: Daemon

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.server_host = stack.enter_context(contextlib.closing(Host(f"qmux-{os.getpid()}-s")))
            self.client_host = stack.enter_context(contextlib.closing(Host(f"qmux-{os.getpid()}-c")))
            self._join()
            self._stack = stack.pop_all()

    def _join(self) -> None:
        _ip(
            *("link", "add", "veth0", "netns", self.server_host.name, "type", "veth"),
            *("peer", "name", "veth0", "netns", self.client_host.name),
        )
        self.server_host.address(f"{SERVER_V4}/24", f"{SERVER_V6}/64")
        self.client_host.address(f"{CLIENT_V4}/24", f"{CLIENT_V6}/64")
        for host in (self.server_host, self.client_host):
            host.ip("link", "set", "veth0", "up")

    def close(self) -> None:
        self._stack.close()

    def mtu(self, size_bytes: int) -> None:
        for host in (self.server_host, self.client_host):
            host.ip("link", "set", "veth0", "mtu", str(size_bytes))

    def start(self, target: str, server_host: str = SERVER_V4, quic: str = "") -> tuple[Daemon, Daemon]:
        """Both daemons, the client registered."""
        server = self.start_server(quic)
        return server, self.start_client(server, target, server_host)

    def start_server(self, quic: str = "") -> Daemon:
        bundle = _server_bundle(self.deployment)
        server_text = (
            f'[server]\nbundle = "{bundle}"\nworkers = 2\nruntime_dir = "run-server"\nstate_dir = "state-server"\n'
            f'[quic]\nbind = ":{QUIC_PORT}"\n{quic}[services.web]\nbind = ":{TRAFFIC_PORT}"\nqueue_timeout = "20s"\n'
        )
        config = self.deployment.write("server.toml", server_text)
        return self.deployment.start("qmuxd", config, prefix=self.server_host.run).until_ready()

    def start_client(self, server: Daemon, target: str, server_host: str = SERVER_V4) -> Daemon:
        """Registered."""
        address = f"[{server_host}]" if ":" in server_host else server_host
        servers = [f"{address}:{QUIC_PORT}"]
        text = self.deployment.client_text("pod-1", {"web": target}, servers=servers, client=QUICK)
        config = self.deployment.write("pod-1.toml", text)
        client = self.deployment.start("qmuxc", config, prefix=self.client_host.run)
        server.until_clients(1, connections=2)
        return client

    def exchange(self, data: bytes) -> bytes:
        """A user on the server's host: send ``data`` and FIN, return what comes back up to FIN."""
        with self.server_host.inside():
            return exchange(TRAFFIC_PORT, data)

    def answers(self) -> bool:
        try:
            return self.exchange(b"again") == b"again"
        except OSError:
            return False


def _server_bundle(deployment: Deployment) -> str:
    return authority.issue_server(deployment.directory, ["server", SERVER_V4, SERVER_V6]).name


def _pair(deployment: Deployment) -> Iterator[Pair]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip (iproute2)")
    try:
        made = Pair(deployment)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces with a veth pair: {error.stderr.strip()}")
    yield made
    deployment.close()
    made.close()


@pytest.fixture
def pair(deployment: Deployment) -> Iterator[Pair]:
    """For this test alone: both hosts as they are made, and no daemon."""
    yield from _pair(deployment)


@pytest.fixture(scope="module")
def serving(shared: Deployment) -> Iterator[Pair]:
    """Two hosts for many tests, with a server; each test starts its client, and leaves the cable as it was."""
    for made in _pair(shared):
        made.server = made.start_server()
        yield made


@contextlib.contextmanager
def client_of(pair: Pair, target: str, server_host: str = SERVER_V4) -> Iterator[Daemon]:
    """A client for this test, that has left when it ends."""
    client = pair.start_client(pair.server, target, server_host)
    yield client
    assert client.stop() == 0
    until(lambda: pair.server.status().get("clients") == [], "it has left")


@contextlib.contextmanager
def behind(pair: Pair, handler: Handler) -> Iterator[Service]:
    """A service on the client's host."""
    with contextlib.ExitStack() as stack:
        with pair.client_host.inside():
            service = stack.enter_context(Service(handler))
        yield service


@pytest.fixture
def service(pair: Pair) -> Iterator[Service]:
    with behind(pair, echo) as echoing:
        yield echoing


@pytest.mark.parametrize(
    ("mtu", "server_host"),
    [
        (1500, SERVER_V4),
        (1280, SERVER_V6),
        pytest.param(1280, SERVER_V4, marks=pytest.mark.extended),
        pytest.param(1500, SERVER_V6, marks=pytest.mark.extended),
    ],
)
def test_bytes_both_ways(serving: Pair, mtu: int, server_host: str) -> None:
    serving.mtu(mtu)
    data = pattern(3_000_000)
    with behind(serving, echo) as service, client_of(serving, service.target, server_host):
        assert hashlib.sha256(serving.exchange(data)).digest() == hashlib.sha256(data).digest()
    serving.mtu(1500)


def test_a_service_is_found_by_the_client_alone(serving: Pair) -> None:
    """The target is dialled on the client's host: the server's has nothing at that port."""
    with behind(serving, digest) as sink, client_of(serving, sink.target):
        data = os.urandom(100_000)
        assert serving.exchange(data).decode() == hashlib.sha256(data).hexdigest()
        with serving.server_host.inside(), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", sink.port), 5)


def test_an_interface_that_is_down_for_a_moment_loses_no_byte(serving: Pair) -> None:
    """Shorter than the idle timeout: the running user connection goes on where it was."""
    with behind(serving, echo) as service, client_of(serving, service.target):
        with serving.server_host.inside():
            user = socket.create_connection(("127.0.0.1", TRAFFIC_PORT), 30)
        with user:
            assert ask(user, b"before") == b"before"
            serving.client_host.ip("link", "set", "veth0", "down")
            user.sendall(b"while it is dark")
            lasts(1.0)  # the darkness that is asked for
            serving.client_host.ip("link", "set", "veth0", "up")
            assert read_exactly(user, 16) == b"while it is dark"
            assert ask(user, b"after") == b"after"


@pytest.mark.engines(extended=("auto", "aioquic"))
def test_the_client_recovers_when_its_interface_was_down_for_long(pair: Pair, service: Service) -> None:
    server, client = pair.start(service.target, quic='idle_timeout = "3s"\nkeep_alive = "1s"\nheartbeat = "1s"\n')
    assert pair.answers()
    pair.client_host.ip("link", "set", "veth0", "down")
    until(lambda: not server.status().get("clients"), "the server gives the client up")
    until(lambda: "cannot connect to server; trying again" in client.log, "the client says that it cannot connect")
    pair.client_host.ip("link", "set", "veth0", "up")
    until(pair.answers, "served again")
    until(lambda: client.log.count("registered at server") == 2, "the client says so")
    assert "Traceback" not in server.log + client.log


def test_packets_that_vanish_are_told_as_no_answer(serving: Pair) -> None:
    """A firewall that drops UDP: no error comes back, so the client can only say what it does not hear."""
    text = serving.deployment.client_text(
        "pod-1", {"web": "127.0.0.1:9"}, servers=[f"{SERVER_V4}:{QUIC_PORT}"], client=QUICK
    )
    serving.client_host.ip("neigh", "replace", SERVER_V4, "lladdr", NOWHERE, "dev", "veth0", "nud", "permanent")
    config = serving.deployment.write("once.toml", text)
    client = serving.deployment.start("qmuxc", config, "--once", prefix=serving.client_host.run)
    assert client.process.wait(60) == 5
    assert f"is UDP port {QUIC_PORT} blocked by a firewall" in client.log
    serving.client_host.ip("neigh", "del", SERVER_V4, "dev", "veth0")


def test_the_client_recovers_when_its_address_changes(pair: Pair, service: Service) -> None:
    server, client = pair.start(service.target)
    assert pair.answers()
    pair.client_host.ip("addr", "del", f"{CLIENT_V4}/24", "dev", "veth0")
    pair.client_host.address(f"{OTHER_V4}/24")

    def moved() -> bool:
        ready = [each for each in server.status().get("clients", []) if each["state"] == "ready"]
        return bool(ready) and pair.answers() and OTHER_V4 in server.log

    until(moved, "served from the new address")
    assert "Traceback" not in server.log + client.log


def test_users_wait_while_the_network_is_dark(pair: Pair, service: Service) -> None:
    """Users who come while the client cannot be reached wait for it, up to ``queue_timeout``."""
    server, client = pair.start(service.target, quic='idle_timeout = "2s"\nkeep_alive = "500ms"\nheartbeat = "1s"\n')
    pair.client_host.ip("link", "set", "veth0", "down")
    until(lambda: not server.status().get("clients"), "the server gives the client up")
    answers: list[bytes] = []
    user = threading.Thread(target=lambda: answers.append(pair.exchange(b"patient")))
    user.start()
    pair.client_host.ip("link", "set", "veth0", "up")
    user.join(40)
    assert answers == [b"patient"]
    assert "Traceback" not in server.log + client.log


def test_a_firewall_that_rejects_is_called_one(deployment: Deployment) -> None:
    """ "prohibit" of the routing answers as a packet filter does that rejects: administratively prohibited."""
    text = deployment.client_text("pod-1", {"web": "127.0.0.1:1"}, servers=["203.0.113.1:8443"])
    prepare = 'ip link set lo up && ip route add prohibit 203.0.113.1 && exec "$@"'
    prefix = ("unshare", "--net", "sh", "-c", prepare, "sh")
    client = deployment.start("qmuxc", deployment.write("pod-1.toml", text), "--once", prefix=prefix)
    assert client.process.wait(30) == 5
    assert "a firewall here or on the way forbids it; allow UDP to port 8443 there" in client.log
