"""Hosts: where a process of the load test runs, and by which address the others reach it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

CLONE_NEWNET = 0x40000000  # sched.h

OF_THIS_THREAD = "/proc/thread-self/ns/net"


class Host(Protocol):
    """One end of a path."""

    @property
    def address(self) -> str:
        """By which the other host, and this one too, reaches what listens here."""
        ...

    def inside(self) -> AbstractContextManager[None]:
        """Sockets that this thread makes meanwhile, and processes that it starts, belong to this host."""
        ...


class ThisMachine:
    """The machine as it is."""

    address = "127.0.0.1"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Nothing to change."""
        yield


class Namespace:
    """A network namespace without a name: nothing but our descriptor and the processes in it keep it.

    So the kernel removes it and its interfaces also where this process is killed. Raises OSError where the kernel
    does not allow one: it takes CAP_SYS_ADMIN.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with open(OF_THIS_THREAD) as before:
            _call("unshare", CLONE_NEWNET)
            try:
                self._file = open(OF_THIS_THREAD)  # noqa: SIM115 (close() closes it)
            finally:
                _call("setns", before.fileno(), CLONE_NEWNET)

    @property
    def reference(self) -> str:
        """A path by which other processes find this namespace."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move this thread in, and back out at the end."""
        with open(OF_THIS_THREAD) as before:
            _call("setns", self._file.fileno(), CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", before.fileno(), CLONE_NEWNET)

    def set(self, name: str, value: str) -> None:
        """Set a sysctl below ``net`` for this namespace alone."""
        with self.inside():
            Path("/proc/sys/net", *name.split(".")).write_text(value)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


def _call(name: str, *arguments: int) -> None:
    """Call libc: ``os`` has ``setns`` and ``unshare`` from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
