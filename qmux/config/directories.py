"""Where a daemon keeps its things: a runtime directory of its own (sockets, lock) and a state directory.

By default ``BASE/ROLE-HASH``; BASE is ``/run/qmux`` for root, else ``$XDG_RUNTIME_DIR/qmux``, without that variable
``qmux-UID`` in the temporary directory. HASH is the first 8 hex digits of SHA-256 of the config's absolute path, or of
a one-liner's arguments: the same command finds the same daemon, and two never share a directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from qmux.config.addresses import MAX_UNIX_PATH_BYTES, AddressError, check_unix_path
from qmux.config.schema import ClientConfig, Config
from qmux.errors import StartError
from qmux.paths import path_of

LONGEST_SOCKET = "admin.sock"
"""The longest name of a socket in the runtime directory."""

LOCK_FILE = "lock"
"""The supervisor holds an exclusive ``flock`` on it, and its children inherit it."""


def base_dir() -> Path:
    """Where the runtime directories of this user's daemons are. It need not exist yet."""
    if os.geteuid() == 0:
        return Path("/run/qmux")
    if runtime := _xdg("XDG_RUNTIME_DIR"):
        return Path(runtime) / "qmux"
    return Path(tempfile.gettempdir()) / f"qmux-{os.geteuid()}"


def state_base_dir() -> Path:
    """Where the state directories are: ``/var/lib/qmux``, or ``$XDG_STATE_HOME/qmux``.

    Raises StartError where this user has no home: a container may run any number as its user.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/qmux")
    # The variable's own default: https://specifications.freedesktop.org/basedir-spec/latest/
    home = _xdg("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if not os.path.isabs(home):
        raise StartError(
            f"no place for the state directory: uid {os.geteuid()} has no home directory here; "
            "set server.state_dir, or the variable XDG_STATE_HOME to an absolute path"
        )
    return Path(home) / "qmux"


def _xdg(variable: str) -> str:
    """A base directory, "" where it is not set; a relative path counts as that (the specification says so)."""
    value = os.environ.get(variable, "")
    return value if os.path.isabs(value) else ""


def name_of(role: str, source: str) -> str:
    """``server-HASH`` for the daemon of this source: a config's absolute path, or a one-liner's arguments."""
    return f"{role}-{hashlib.sha256(path_of(source).encode(errors='surrogateescape')).hexdigest()[:8]}"


def default_runtime_dir(role: str, source: str) -> Path:
    """The runtime directory of the daemon of this source, where its configuration names none."""
    return base_dir() / name_of(role, source)


def check_runtime_dir(path: Path) -> None:
    """Raise AddressError where the kernel could not bind the sockets that go into this runtime directory."""
    try:
        check_unix_path(str(path / LONGEST_SOCKET))
    except AddressError:
        longest = MAX_UNIX_PATH_BYTES - len(f"/{LONGEST_SOCKET}")
        raise AddressError(
            f"too long for the Unix sockets in it: {len(os.fsencode(path))} bytes; at most {longest}"
        ) from None


def runtime_dir(config: Config) -> Path:
    """The runtime directory of this configuration's daemon."""
    return Path(path_of(config.process.runtime_dir)) if config.process.runtime_dir else base_dir() / _name(config)


def state_dir(config: Config) -> Path:
    """The state directory of this configuration's daemon."""
    return Path(path_of(config.process.state_dir)) if config.process.state_dir else state_base_dir() / _name(config)


def running_dirs() -> list[Path]:
    """The runtime directories below ``base_dir()`` whose daemon runs (its supervisor or a child holds the lock)."""
    try:
        found = sorted(path for path in base_dir().iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # nobody of this user has started one
    return [path for path in found if is_running(path)]


def is_running(directory: Path) -> bool:
    """Whether a daemon holds the lock in this runtime directory."""
    try:
        fd = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # no lock file: no daemon was ever here
    try:
        # Shared, so that two that look at the same time do not take each other for a daemon; given back at once, and
        # a starting supervisor waits for the lock much longer than that.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _name(config: Config) -> str:
    return name_of("client" if isinstance(config, ClientConfig) else "server", config.source)
