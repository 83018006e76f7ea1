"""Stopping under load: who was accepted is served."""

from __future__ import annotations

import collections
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Sequence

import psutil

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import Ended, read_line
from tests.waiting import lasts, until


@contextlib.contextmanager
def one_at_a_time(deployment: Deployment, users: int) -> Iterator[tuple[Daemon, list[socket.socket]]]:
    """A server that lets one user in at a time, and users whom it has accepted. Within the body the server is told to
    stop and all are served: none was refused, and the client lives on.
    """
    port = free_port()
    with Service(named("x")) as service, contextlib.ExitStack() as stack:
        lines = f'bind = "127.0.0.1:{port}"\nmaxconn = 1\nqueue_timeout = "60s"'
        server = deployment.server({"web": lines}, workers=2, stop_after="60s")
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        come = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))]
        assert read_line(come[0]) == "x"
        come += [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(users - 1)]
        until(lambda: accepted(server, port) == users, "all are accepted")
        yield server, come
        assert server.process.wait(30) == 0
        assert service.connections == users
        assert "user connection refused" not in server.log
        assert client.process.poll() is None


def test_users_that_wait_are_served_while_the_server_stops(deployment: Deployment) -> None:
    """maxconn lets one in at a time: the others were accepted before the stop and get their turn during it."""
    with one_at_a_time(deployment, 6) as (server, users):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(server, users[0].getpeername()[1]), "the workers have heard of it")
        users[0].close()
        serve_in_turn(users[1:])


def test_workers_that_hear_of_the_stop_and_of_each_other_at_once(deployment: Deployment) -> None:
    """A busy worker reads the order to drain and the news that its sibling drains in one go: the client that its own
    users wait for is not sent to the sibling, nor away from it.
    """
    with one_at_a_time(deployment, 8) as (server, users):
        workers = [psutil.Process(worker["pid"]) for worker in server.workers()]
        for worker in workers:
            worker.suspend()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in server.log, "it stops")
        lasts(0.3)  # what the supervisor sends lies in the workers' sockets: nothing shows that
        for worker in workers:
            worker.resume()
        users[0].close()
        serve_in_turn(users[1:])
    assert "client is stopping" not in server.log  # it gave no connection up


def sockets_at(server: Daemon, port: int, status: str) -> int:
    """TCP sockets of the workers of a server with this local port, in this state."""
    held = []
    for worker in server.workers():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, its sockets with it
            held += psutil.Process(worker["pid"]).net_connections("tcp4")
    return sum(sock.status == status and sock.laddr[1] == port for sock in held)


def accepted(server: Daemon, port: int) -> int:
    """Users whom the workers of a server have taken from the queue of this port."""
    return sockets_at(server, port, psutil.CONN_ESTABLISHED)


def listens(server: Daemon, port: int) -> bool:
    return sockets_at(server, port, psutil.CONN_LISTEN) > 0


def serve_in_turn(users: Sequence[socket.socket]) -> None:
    """Each has said nothing; all are served, and leave when they are."""
    left = list(users)
    while left:
        for user in until(lambda: [each for each in left if _has_data(each)], "the next one is served"):
            assert read_line(user) == "x"
            left.remove(user)
            user.close()


def _has_data(user: socket.socket) -> bool:
    user.setblocking(False)
    try:
        return bool(user.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_client_stops_under_load_and_no_user_is_lost(deployment: Deployment) -> None:
    """With early data and without; who comes later is served by the other client."""
    ports = {"plain": free_port(), "early": free_port()}
    outcomes: collections.Counter[str] = collections.Counter()
    stop = threading.Event()

    def come_and_go(port: int) -> None:
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", port), 30) as user:
                try:
                    user.sendall(b"?")
                    outcomes[read_line(user)] += 1
                except (OSError, Ended) as error:
                    outcomes[type(error).__name__] += 1

    with Service(named("a")) as first, Service(named("b")) as second:
        binds = {name: f'bind = "127.0.0.1:{port}"\n' for name, port in ports.items()}
        server = deployment.server({**binds, "early": f"{binds['early']}early_data = true"}, workers=2)
        leaving = deployment.client("a", dict.fromkeys(ports, first.target))
        deployment.client("b", dict.fromkeys(ports, second.target))
        server.until_clients(2, connections=2)
        threads = [threading.Thread(target=come_and_go, args=(port,)) for port in ports.values() for _ in range(15)]
        for thread in threads:
            thread.start()
        until(lambda: outcomes["a"] > 50 and outcomes["b"] > 50, "users come and go")
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(30) == 0
        seen = outcomes["b"]
        until(lambda: outcomes["b"] > seen + 50, "the other one serves on")
        stop.set()
        for thread in threads:
            thread.join(40)
        assert set(outcomes) == {"a", "b"}, outcomes
