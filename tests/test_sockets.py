from __future__ import annotations

import socket

import pytest

from qmux import sockets


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def test_prepare(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    with client, server:
        sockets.prepare(server)
        assert not server.getblocking()
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        probed_s = sockets.KEEPALIVE_IDLE_S + sockets.KEEPALIVE_PROBES * sockets.KEEPALIVE_INTERVAL_S
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == sockets.KEEPALIVE_IDLE_S
        assert probed_s == 120


def test_prepare_a_unix_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sockets.prepare(ours)
        assert not ours.getblocking()


def test_reset_is_an_rst(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    with client:
        sockets.reset(server)
        assert server.fileno() == -1
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_close_is_a_fin_behind_all_bytes(pair: tuple[socket.socket, socket.socket], is_prepared: bool) -> None:
    client, server = pair
    with client:
        server.setblocking(False)
        if is_prepared:
            sockets.prepare(server)
        sent = server.send(bytes(8 << 20))  # more than the other end holds: a part waits in the kernel
        sockets.close(server)
        client.settimeout(5)
        received = 0
        while data := client.recv(1 << 20):
            received += len(data)
        assert received == sent


def test_a_prepared_socket_that_is_only_dropped_is_an_rst(pair: tuple[socket.socket, socket.socket]) -> None:
    """As the kernel drops those of a process that is killed."""
    client, server = pair
    with client:
        sockets.prepare(server)
        socket.close(server.detach())
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_close_of_a_unix_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        sockets.close(ours)
        assert theirs.recv(1) == b""


def test_reset_of_what_is_closed_or_detached(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    with client:
        descriptor = server.detach()
        sockets.reset(server)
        with socket.socket(fileno=descriptor) as kept:
            kept.sendall(b"x")
            assert client.recv(1) == b"x"


def test_reset_of_a_unix_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        sockets.reset(ours)
        assert theirs.recv(1) == b""
