"""Where the daemon's log goes: stderr as we got it, or ``[log] file``, which SIGUSR1 reopens after a rotation."""

from __future__ import annotations

import os

from qmux import log as qmux_log
from qmux.config.schema import LogConfig
from qmux.errors import StartError
from qmux.paths import path_of

STDERR = 2


class LogFile:
    """The one open log. ``fd`` is what children get as stdout and stderr."""

    def __init__(self, config: LogConfig) -> None:
        """Open it and log there from now on. Raises StartError."""
        self._config = config
        self.fd = _open(config.file)
        self._log_there()

    @property
    def path(self) -> str:
        """The file, or "" for stderr."""
        return self._config.file

    def follow(self, config: LogConfig) -> bool:
        """Log as ``config`` says. Returns whether ``fd`` is another one now. Raises StartError and changes nothing."""
        moved = config.file != self._config.file
        if moved:
            self._replace(_open(config.file))
        self._config = config
        self._log_there()
        return moved

    def reopen(self) -> None:
        """Reopen the file by its name. Raises StartError, and goes on with the old one."""
        self._replace(_open(self._config.file))
        self._log_there()

    def _replace(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        if old != STDERR:
            os.close(old)

    def _log_there(self) -> None:
        # closefd: the descriptor is ours and outlives the stream; line buffering: a line is whole or absent.
        stream = open(self.fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        qmux_log.configure(self._config.level, self._config.format, "supervisor", stream)

    def close(self) -> None:
        """Log to stderr again."""
        if self.fd != STDERR:
            self._config = LogConfig(level=self._config.level, format=self._config.format)
            self._replace(STDERR)
            self._log_there()


def _open(path: str) -> int:
    if not path:
        return STDERR
    try:
        return os.open(path_of(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartError(
            f'log.file = "{path}": {error.strerror}; create its directory and let this user write there'
        ) from None
