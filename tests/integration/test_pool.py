"""One global pool: users spread over all clients, whichever worker accepts them."""

from __future__ import annotations

import contextlib
import select
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.daemons import Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import read_line
from tests.waiting import until

POLICIES = ("least-connections", "round-robin")
ATTEMPTS = 5
SUSPECT = "client is suspect"
LINES = 'queue_timeout = "60s"\nsetup_timeout = "60s"'


class Clients:
    """Three clients ``a``, ``b`` and ``c`` with these weights at a server with four workers, which has a service for
    each policy.
    """

    def __init__(self, deployment: Deployment, stack: contextlib.ExitStack, weights: tuple[int, ...]) -> None:
        self.weights = dict(zip("abc", weights, strict=True))
        self.ports = {policy: free_port() for policy in POLICIES}
        binds = {policy: f'bind = "127.0.0.1:{port}"\n{LINES}\n' for policy, port in self.ports.items()}
        binds = {policy: f'{bind}balance = "{policy}"' for policy, bind in binds.items()}
        self.server = deployment.server(binds, workers=4)
        for name, weight in self.weights.items():
            target = stack.enter_context(Service(named(name))).target
            deployment.client(name, dict.fromkeys(POLICIES, target), client=f"weight = {weight}")
        self.server.until_clients(3, connections=4)

    def is_empty(self) -> bool:
        return all(row["connections"] == 0 for row in self.server.status()["services"])

    def check_shares(self, policy: str, users: int) -> None:
        """A client that the machine held up gets fewer, as it should: such an attempt shows nothing and is repeated."""
        shares = {name: users * weight / sum(self.weights.values()) for name, weight in self.weights.items()}
        for _ in range(ATTEMPTS):
            self.server.until_clients(3, connections=4)
            until(self.is_empty, "the users of the attempt before have left")
            before = self.server.log.count(SUSPECT)
            with held(self.ports[policy], users) as found:
                assert sum(found.values()) == users
                if self.server.log.count(SUSPECT) == before:
                    assert all(is_share(found[name], share) for name, share in shares.items()), found
                    return
        raise AssertionError(f"some client was suspect each of {ATTEMPTS} times")


@pytest.fixture(scope="module")
def clients(shared: Deployment) -> Iterator[Clients]:
    with contextlib.ExitStack() as stack:
        yield Clients(shared, stack, (1, 2, 3))


@contextlib.contextmanager
def held(port: int, count: int, threads: int = 8) -> Iterator[Counter[str]]:
    """``count`` users opened from several threads and held; who serves each, by the name that it says."""
    users: list[socket.socket] = []
    lock = threading.Lock()

    def open_some(share: int) -> None:
        for _ in range(share):
            user = socket.create_connection(("127.0.0.1", port), timeout=60)
            with lock:
                users.append(user)

    workers = [threading.Thread(target=open_some, args=(count // threads,)) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        yield names(users)
    finally:
        for user in users:
            user.close()


def names(users: list[socket.socket]) -> Counter[str]:
    """What ``services.named`` says to each: its name, "reset", or "silent"."""
    found: Counter[str] = Counter()
    heard = {user: b"" for user in users}
    selector = selectors.DefaultSelector()
    for user in users:
        selector.register(user, selectors.EVENT_READ)
    deadline = time.monotonic() + 90
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            user = key.fileobj
            assert isinstance(user, socket.socket)
            try:
                heard[user] += (piece := user.recv(100))
            except ConnectionResetError:
                piece, heard[user] = b"", b"reset"
            if not piece or heard[user].endswith(b"\n"):
                selector.unregister(user)
                found[heard[user].decode().strip()] += 1
    found["silent"] += len(selector.get_map())
    selector.close()
    return +found


def is_share(count: int, expected: float) -> bool:
    return abs(count - expected) <= 0.05 * expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("users", [1200, pytest.param(3000, marks=pytest.mark.extended)])
def test_held_connections_are_shared_by_weight(clients: Clients, policy: str, users: int) -> None:
    clients.check_shares(policy, users)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.engines(extended=("auto", "aioquic"))
def test_held_connections_are_shared_evenly(deployment: Deployment, policy: str) -> None:
    with contextlib.ExitStack() as stack:
        Clients(deployment, stack, (1, 1, 1)).check_shares(policy, 3000)


def test_users_are_handed_to_the_worker_that_has_the_client(deployment: Deployment) -> None:
    """One lane for four workers: three of four users are accepted where no client is connected."""
    port = free_port()
    with Service(named("only")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=4, quic="lanes = 1")
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=1)
        server.until_one_lane()
        with held(port, 200) as found:
            assert found == {"only": 200}
        # Of four workers one has the client: three of four users are handed over, more or less.
        until(lambda: sum(s.get("handed_off", 0) for s in server.status()["services"]) > 100, "hand-offs counted")


def test_stopped_worker_does_not_block_others(clients: Clients) -> None:
    """A SIGSTOPped worker: users accepted by the others are served; when it goes on, views agree again."""
    port = clients.ports["round-robin"]
    victim = psutil.Process(clients.server.workers()[0]["pid"])
    victim.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        stack.callback(victim.send_signal, signal.SIGCONT)  # long before the supervisor's watchdog loses patience
        users = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(24)]
        # A quarter of them, more or less, is in the stopped worker's queue.
        until(lambda: len(select.select(users, [], [], 0)[0]) >= 6, "others serve theirs")
        victim.send_signal(signal.SIGCONT)
        assert all(read_line(user) in "abc" for user in users)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
            assert read_line(user) in "abc"


def test_load_at_one_server_counts_at_another(deployment: Deployment) -> None:
    """A client with 30 users of one server gets none of another's while a client with fewer is there."""
    port, other_port, other_quic = free_port(), free_port(), free_port(socket.SOCK_DGRAM)
    with Service(named("busy")) as busy, Service(named("idle")) as idle:
        first = deployment.server({"only": f'bind = "127.0.0.1:{port}"'}, workers=1)
        text = deployment.server_text({"web": f'bind = "127.0.0.1:{other_port}"'}, workers=1)
        text = text.replace(f":{deployment.quic_port}", f":{other_quic}").replace("-server", "-second")
        second = deployment.start("qmuxd", deployment.write("second.toml", text)).until_ready()
        both = [f"127.0.0.1:{deployment.quic_port}", f"127.0.0.1:{other_quic}"]
        deployment.client("busy", {"only": busy.target, "web": busy.target}, servers=both)
        deployment.client("idle", {"web": idle.target}, servers=both[1:])
        first.until_clients(1)
        second.until_clients(2)
        with held(port, 30, threads=1) as found:
            assert found == {"busy": 30}

            def is_known() -> bool:
                with held(other_port, 20, threads=1) as others:
                    return others == {"idle": 20}

            until(is_known, "all 30 are told")  # heartbeats tell of the first few at once, of the rest 0.1 s later
