"""What happens to one user's connection: half-close, resets, stopped readers, retries, limits and timeouts."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tests.daemons import Daemon, Deployment, free_port, until
from tests.integration.services import Service, echo, named
from tests.integration.users import RST, ask, connect, read_exactly, read_line, read_to_end, reset
from tests.ports import swallowing


def tunnel(deployment: Deployment, service: Service, port: int, lines: str = "", **options: str) -> Daemon:
    server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\n{lines}'}, workers=1)
    deployment.client("pod-1", {"web": service.target}, **options)
    return server.until_clients(1)


def refused(server: Daemon, reason: str) -> int:
    services = server.status().get("services", [])
    return sum(int(service["refused"].get(reason, 0)) for service in services)


def test_half_close_by_the_user_first(deployment: Deployment) -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()  # to FIN
        await asyncio.sleep(0.2)
        writer.write(b"answer to " + request)
        await writer.drain()

    port = free_port()
    with Service(late) as service:
        tunnel(deployment, service, port)
        with connect(port) as user:
            user.sendall(b"question")
            user.shutdown(socket.SHUT_WR)
            assert read_to_end(user) == b"answer to question"


def test_half_close_by_the_service_first(deployment: Deployment) -> None:
    received: list[bytes] = []

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"greeting")
        writer.write_eof()
        received.append(await reader.read())

    port = free_port()
    with Service(early) as service:
        tunnel(deployment, service, port)
        with connect(port) as user:
            assert read_to_end(user) == b"greeting"
            user.sendall(b"still sending")
            user.shutdown(socket.SHUT_WR)
            assert until(lambda: received, "the service read to FIN") == [b"still sending"]


def test_reset_by_the_user_reaches_the_service(deployment: Deployment) -> None:
    errors: list[BaseException] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            while await reader.read(100):
                pass
        except ConnectionResetError as error:
            errors.append(error)

    port = free_port()
    with Service(watch) as service:
        tunnel(deployment, service, port)
        user = connect(port)
        assert user.recv(1) == b"x"
        reset(user)
        until(lambda: errors, "RST at the service")


def test_reset_by_the_service_reaches_the_user(deployment: Deployment) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()

    port = free_port()
    with Service(reset) as service:
        tunnel(deployment, service, port)
        with connect(port) as user:
            user.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                user.recv(1)


def test_stopped_reader_is_bounded_and_disturbs_nobody(deployment: Deployment) -> None:
    """1 GB is offered to a user that does not read: our processes hold at most 4 MiB more, a sibling goes on."""
    chunk = bytes(1 << 20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"f":  # a flood
            for _ in range(1000):
                writer.write(chunk)
                await writer.drain()
        else:
            await echo(reader, writer)

    def rss_bytes(*daemons: Daemon) -> int:
        """Without the admin process, which the questions below let grow: no user's byte comes there."""
        family = [process for daemon in daemons for process in daemon.family()]
        return sum(process.memory_info().rss for process in family if process.cmdline()[-1] != "admin")

    port = free_port()
    with Service(serve) as service:
        server = tunnel(deployment, service, port)
        client = deployment.daemons[-1].until_ready()  # a start takes memory, too
        with connect(port) as stopped, connect(port) as sibling:
            sibling.sendall(b"e" + bytes(1_000_000))
            assert len(read_exactly(sibling, 1_000_000)) == 1_000_000
            before = rss_bytes(server, client)
            stopped.sendall(b"f")
            last = [0.0]

            def is_stalled() -> bool:
                """The kernel's and our buffers are full: what the server moved does not grow any more."""
                moved = sum(s["bytes_out"] for s in server.status()["services"])
                grew, last[0] = moved != last[0], moved
                return not grew and moved > 1_000_000

            def stays_stalled() -> bool:
                if not is_stalled():
                    return False
                time.sleep(1.1)  # it must still be so when the counters have been published again
                return is_stalled()

            until(stays_stalled, "the flood stalls", 60)
            assert rss_bytes(server, client) - before < 4 << 20
            sibling.sendall(bytes(3_000_000))
            assert len(read_exactly(sibling, 3_000_000)) == 3_000_000


def test_refused_attempt_goes_to_another_client(deployment: Deployment) -> None:
    port, nobody = free_port(), free_port()
    with Service(named("good")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        deployment.client("bad", {"web": f"127.0.0.1:{nobody}"})
        deployment.client("good", {"web": service.target})
        server.until_clients(2, connections=2)
        for _ in range(20):
            with connect(port) as user:
                assert read_line(user) == "good"
    assert refused(server, "service_refused") == 0


def test_every_client_refuses_then_the_user_is_reset_at_once(deployment: Deployment) -> None:
    port, nobody = free_port(), free_port()
    server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "60s"'}, workers=1)
    deployment.client("bad", {"web": f"127.0.0.1:{nobody}"})
    server.until_clients(1)
    with pytest.raises(ConnectionResetError), connect(port) as user:  # the reset may be there before us
        user.recv(1)
    until(lambda: refused(server, "service_refused") == 1, "counted")
    assert server.log.count("user connection refused") == 1


def test_early_data_arrives_once(deployment: Deployment) -> None:
    port, nobody = free_port(), free_port()
    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nearly_data = true'}, workers=1)
        deployment.client("bad", {"web": f"127.0.0.1:{nobody}"})
        deployment.client("good", {"web": service.target})
        server.until_clients(2)
        for number in range(20):
            with connect(port) as user:
                data = f"request {number}".encode() * 100
                user.sendall(data)
                user.shutdown(socket.SHUT_WR)
                assert read_to_end(user) == data


def test_queue_timeout_then_reset(deployment: Deployment) -> None:
    port = free_port()
    server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "700ms"'}, workers=1)
    started = time.monotonic()
    with connect(port) as user, pytest.raises(ConnectionResetError):
        user.recv(1)
    assert time.monotonic() - started > 0.5
    until(lambda: refused(server, "queue_timeout") == 1, "counted")


def test_user_waits_for_a_client_that_comes(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("late")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "20s"'}, workers=2)
        with connect(port, 30) as user:
            deployment.client("pod-1", {"web": service.target})
            assert read_line(user) == "late"
    assert server.process.poll() is None


def test_idle_timeout_and_half_closed_timeout(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        tunnel(deployment, service, port, 'idle_timeout = "1s"\nhalf_closed_timeout = "500ms"')
        started = time.monotonic()
        with connect(port) as user:
            assert read_line(user) == "x"
            with pytest.raises(ConnectionResetError):
                user.recv(1)
            assert time.monotonic() - started > 1.0


def test_setup_timeout(deployment: Deployment) -> None:
    port = free_port()
    with swallowing() as (host, target_port):
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nsetup_timeout = "1s"'}, workers=1)
        deployment.client("pod-1", {"web": f"{host}:{target_port}"})
        server.until_clients(1)
        started = time.monotonic()
        with connect(port) as user, pytest.raises(ConnectionResetError):
            user.recv(1)
        assert time.monotonic() - started > 0.8
        until(lambda: refused(server, "setup_timeout") == 1, "counted")


def test_maxconn_queues_and_then_resets(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = tunnel(deployment, service, port, 'maxconn = 2\nqueue_timeout = "5s"')
        with connect(port) as first, connect(port) as second, connect(port) as third:
            assert read_line(first) + read_line(second) == "xx"
            with pytest.raises(ConnectionResetError):
                third.recv(1)
            until(lambda: refused(server, "maxconn") == 1, "counted")
            with connect(port) as fourth:
                first.close()  # makes room for the one that waits
                assert read_line(fourth) == "x"


def test_denied_source(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = tunnel(deployment, service, port, 'allow = ["192.0.2.0/24"]')
        with pytest.raises(ConnectionResetError), connect(port) as user:  # the reset may be there before us
            user.recv(1)
        until(lambda: refused(server, "denied") == 1, "counted")


@pytest.mark.parametrize("kind", ["unix", "ipv6", "name"])
def test_targets(deployment: Deployment, kind: str) -> None:
    port = free_port()
    path = str(deployment.directory / "service.sock") if kind == "unix" else ""
    with Service(named(kind), host="::1" if kind == "ipv6" else "127.0.0.1", path=path) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        # "localhost" has both families here; the service listens on one of them.
        target = f"localhost:{service.port}" if kind == "name" else service.target
        deployment.client("pod-1", {"web": target})
        server.until_clients(1)
        with connect(port) as user:
            assert read_line(user) == kind


def test_thousand_users_come_and_go_and_nothing_stays(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service:
        server = tunnel(deployment, service, port)
        client = deployment.daemons[-1].until_ready()
        # Over the bus, to which every process has connected then: that takes descriptors at both of its ends.
        until(lambda: client.status().get("servers"), "the client's worker reports")

        def descriptors() -> int:
            return sum(process.num_fds() for daemon in (server, client) for process in daemon.family())

        with connect(port) as user:
            assert ask(user, b"x") == b"x"
        until(lambda: service.open == 0, "the first user is gone")
        before = descriptors()

        def many() -> None:
            for number in range(250):
                with connect(port) as user:
                    user.sendall(b"y" * (number % 7))
                    if number % 3 == 0:
                        user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: service.open == 0, "every user is gone at the service")
        until(lambda: descriptors() <= before, "every descriptor is closed")
        until(lambda: all(s["connections"] == 0 for s in server.status()["services"]), "no connection is counted")
