"""The paths that are measured: loopback as it is, and two hosts that a veth pair joins.

The user's host has the load generator and whatever stands where users come: ``qmuxd``, the server of rathole, haproxy.
The service's host has the backend and what stands beside it: ``qmuxc``, the client of rathole. So each system crosses
the path once, "direct" too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from loadtest import processes
from loadtest.hosts import Host, Namespace, ThisMachine
from loadtest.system import StartFailed

VETH_MTU_BYTES = 1500
USERS, SERVICE = "10.78.0.1", "10.78.0.2"
COMMAND_S = 10.0


class NetworkPath(NamedTuple):
    """Two hosts, or one that is both, and what lies between them."""

    name: str
    users: Host
    service: Host
    mtu_bytes: int


@contextlib.contextmanager
def loopback() -> Iterator[NetworkPath]:
    """Everything on 127.0.0.1, with the MTU that this machine's loopback interface has."""
    machine = ThisMachine()
    mtu_bytes = int(Path("/sys/class/net/lo/mtu").read_text())
    yield NetworkPath("loopback", machine, machine, mtu_bytes)


@contextlib.contextmanager
def veth() -> Iterator[NetworkPath]:
    """Two network namespaces of our own, joined by a veth pair. Raises StartFailed where they cannot be made."""
    try:
        with (
            contextlib.closing(Namespace(USERS)) as users,
            contextlib.closing(Namespace(SERVICE)) as service,
        ):
            _join(users, service)
            yield NetworkPath("veth", users, service, VETH_MTU_BYTES)
    except PermissionError as error:
        raise StartFailed(f"no network namespaces here: {error.strerror}") from None


PATHS: dict[str, Callable[[], AbstractContextManager[NetworkPath]]] = {"loopback": loopback, "veth": veth}


def missing(name: str) -> str:
    """Why this path cannot be measured here, or ""."""
    if name != "veth":
        return ""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return processes.missing("ip")


def _join(users: Namespace, service: Namespace) -> None:
    peer = ("peer", "name", "veth0", "netns", service.reference)
    _ip(users, "link", "add", "veth0", "mtu", str(VETH_MTU_BYTES), "type", "veth", *peer)
    for host in (users, service):
        _ip(host, "addr", "add", f"{host.address}/24", "dev", "veth0")
        _ip(host, "link", "set", "veth0", "mtu", str(VETH_MTU_BYTES), "up")
        _ip(host, "link", "set", "lo", "up")
        # What the kernel does by itself on loopback (ip-sysctl: 2 is loopback only): a port in TIME_WAIT may be used
        # again. Else a system whose client closes first has no ports left after 28,000 connections.
        host.set("ipv4.tcp_tw_reuse", "1")


def _ip(host: Namespace, *arguments: str) -> None:
    with host.inside():
        command = [processes.program("ip"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode != 0:
        raise StartFailed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
