"""Starts backends and systems, and sees to it that they are ended, whatever happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from loadtest import processes
from loadtest.backends import READY_S, RETRY_S, Backend
from loadtest.paths import NetworkPath
from loadtest.system import Addresses, BackendKind, Setup, StartFailed, System

Backends = dict[BackendKind, Backend]


class Running(NamedTuple):
    """A started system."""

    system: System
    addresses: Addresses


def backends(stack: contextlib.ExitStack, directory: Path, path: NetworkPath, kinds: Iterable[BackendKind]) -> Backends:
    """Start one of each kind; ``stack`` ends them. Raises StartFailed."""
    started: Backends = {}
    for kind in kinds:
        backend = started[kind] = Backend(kind, path.service, folder(directory, kind))
        stack.callback(backend.stop)
        backend.start()
    return started


def system(stack: contextlib.ExitStack, made: System, setup: Setup, behind: Backends) -> Running:
    """Start a system that was made with ``setup``; wait until it is complete and every backend answers through it.

    ``stack`` ends it. Raises StartFailed, with the end of its logs.
    """
    stack.callback(made.stop)
    addresses = made.start({kind: backend.address for kind, backend in behind.items()})
    try:
        for kind, backend in behind.items():
            backend.wait_through(addresses[kind], setup.path.users, made)
        _wait_until_complete(made)
    except StartFailed as error:
        raise StartFailed(f"{made.name} on {setup.path.name}: {error}{processes.logs(setup.directory)}") from None
    return Running(made, addresses)


def _wait_until_complete(made: System) -> None:
    deadline = time.monotonic() + READY_S
    while not made.is_complete():
        if ended := made.ended():
            raise StartFailed(ended)
        if time.monotonic() > deadline:
            raise StartFailed(f"not all of its processes serve after {READY_S:.0f} s")
        time.sleep(RETRY_S)


def folder(directory: Path, name: str) -> Path:
    """Make a folder."""
    path = directory / name
    path.mkdir()
    return path
