"""Where the daemon's log goes: stderr as we got it, or ``[log] file``, which SIGUSR1 reopens after a rotation."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import PurePath

from qmux import log as qmux_log
from qmux.config.schema import LogConfig
from qmux.errors import StartError
from qmux.paths import path_of
from qmux.tasks import in_thread

STDERR = qmux_log.STDERR

OPEN_TIMEOUT_S = 5.0
"""For a file on a disk of the network that does not answer; another one takes milliseconds."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that nobody reads is an error now, instead of an open that waits for its reader.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """The one open log. ``fd`` is what children get as stdout and stderr."""

    def __init__(self, config: LogConfig) -> None:
        """Open it and log there from now on. Raises StartError."""
        self._config = config
        self._lock = asyncio.Lock()  # one file at a time becomes the log
        self.fd = _open(config.file)
        try:
            self._log_there()
        except OSError as error:
            raise StartError(f"cannot log: {error.strerror}") from None

    @property
    def path(self) -> str:
        """The file, or "" for stderr."""
        return self._config.file

    async def follow(self, config: LogConfig) -> bool:
        """Log as ``config`` says. Returns whether ``fd`` is another one now. Raises StartError and changes nothing."""
        async with self._lock:
            moved = config.file != self._config.file
            if moved:
                self._replace(await _opened(config.file))
            self._config = config
            self._log_there()
            return moved

    async def reopen(self) -> None:
        """Reopen the file by its name. Raises StartError, and goes on with the old one."""
        async with self._lock:
            self._replace(await _opened(self._config.file))
            self._log_there()

    def _replace(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        _close(old)

    def _log_there(self) -> None:
        qmux_log.configure(self._config.level, self._config.format, "supervisor", self.fd)

    def close(self) -> None:
        """Log to stderr again."""
        if self.fd != STDERR:
            self._config = LogConfig(level=self._config.level, format=self._config.format)
            self._replace(STDERR)
            self._log_there()


async def _opened(path: str) -> int:
    """``_open`` while the loop runs. A disk that does not answer holds one thread, and not the supervisor."""
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            return await in_thread(lambda: _open(path), "log-open", abandoned=_close)
    except TimeoutError:
        raise StartError(f'log.file = "{path}": not opened within {OPEN_TIMEOUT_S:g} s; its disk hangs') from None


def _close(fd: int) -> None:
    if fd != STDERR:
        os.close(fd)


def _open(path: str) -> int:
    if not path:
        return STDERR
    try:
        fd = _open_below_safe_directories(PurePath(path_of(path)))
    except OSError as error:
        raise StartError(f'log.file = "{path}": {_words(error)}') from None
    os.set_blocking(fd, True)
    return fd


class _Link(OSError):
    """A link where somebody else could have put it."""


def _open_below_safe_directories(path: PurePath) -> int:
    """Open ``path``; in a directory that another user may write, no link is followed: it could lead to any file that we
    may write and they may not. A link that we or root made elsewhere is the administrator's.
    """
    at = os.open(path.anchor or ".", _DIRECTORY)
    try:
        for name in path.relative_to(path.anchor).parts[:-1]:
            below = _open_at(at, name, _DIRECTORY)
            os.close(at)
            at = below
        fd = _open_at(at, path.name, _APPEND)
        if _is_open_to_others(at) and os.fstat(fd).st_nlink > 1:
            os.close(fd)
            raise _Link
        return fd
    finally:
        os.close(at)


def _open_at(directory: int, name: str, flags: int) -> int:
    if not _is_open_to_others(directory):
        return os.open(name, flags, 0o640, dir_fd=directory)
    try:
        return os.open(name, flags | os.O_NOFOLLOW, 0o640, dir_fd=directory)
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(
            os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        )
        if is_link:
            raise _Link from None
        raise


def _is_open_to_others(directory: int) -> bool:
    """Whether somebody else may put a link into ``directory``."""
    found = os.fstat(directory)
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _words(error: OSError) -> str:
    if isinstance(error, _Link):
        return (
            "it is a link, or lies behind one, in a directory that another user may write; name the file itself, "
            "in a directory that only root or this user may write"
        )
    if error.errno == errno.ENXIO:
        return "nothing reads from it: a FIFO needs its reader first, and a socket cannot be opened"
    return f"{error.strerror}; create its directory and let this user write there"
