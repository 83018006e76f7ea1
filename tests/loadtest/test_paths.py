"""Paths: loopback as it is, and two hosts that only their cable joins."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import paths
from loadtest.hosts import Host, Namespace
from loadtest.paths import NetworkPath
from tests.waiting import until


@pytest.fixture
def veth() -> Iterator[NetworkPath]:
    if problem := paths.missing("veth"):
        pytest.skip(problem)
    with paths.veth() as made:
        yield made


def namespace() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def interfaces(host: Host) -> set[str]:
    with host.inside():
        return {name for _, name in socket.if_nameindex()}


def test_loopback_is_this_machine() -> None:
    with paths.loopback() as path:
        before = namespace()
        with path.users.inside():
            assert namespace() == before
        assert path.mtu_bytes == int(Path("/sys/class/net/lo/mtu").read_text())


def test_two_hosts_reach_each_other(veth: NetworkPath) -> None:
    here = namespace()
    with veth.service.inside():
        service = namespace()
        server = socket.create_server((veth.service.address, 0))
    with server:
        with veth.users.inside():
            users = namespace()
            user = socket.create_connection(server.getsockname(), 5)
        accepted, source = server.accept()
        with user, accepted:
            assert source[0] == veth.users.address
    assert len({here, users, service}) == 3
    assert namespace() == here


def test_a_host_that_is_closed_is_gone_with_its_interfaces(veth: NetworkPath) -> None:
    assert interfaces(veth.users) == interfaces(veth.service) == {"lo", "veth0"}
    assert isinstance(veth.users, Namespace)
    veth.users.close()
    until(lambda: interfaces(veth.service) == {"lo"}, "its interface is gone")


def test_a_thread_comes_back_from_a_host_also_after_an_error(veth: NetworkPath) -> None:
    here = namespace()
    with pytest.raises(KeyError), veth.users.inside():
        raise KeyError
    assert namespace() == here
