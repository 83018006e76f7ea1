"""The daemon's own directories: the runtime directory with its lock, and the secret of the state directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qmux.config.addresses import AddressError
from qmux.config.directories import LOCK_FILE, check_runtime_dir
from qmux.errors import StartError
from qmux.messages import DaemonIdentity
from qmux.pki.material import Keys
from supervisor.privileges import Owner

SECRET_BYTES = 32

LOCK_POLL_S = 0.05

IDENTITY, ADMIN_SOCKET, BUS_SOCKETS = "daemon.json", "admin.sock", ("bus-pub", "bus-sub")


class RuntimeDir:
    """The directory of one running daemon. Its lock ends with the last process that inherited ``lock_fd``."""

    def __init__(self, path: Path, owner: Owner, lock_wait_s: float) -> None:
        """Make the directory and take the lock. Raises StartError where it is not private, or another daemon's."""
        try:
            check_runtime_dir(path)
        except AddressError as error:
            raise StartError(f"{path}: {error}; set a shorter runtime_dir") from None
        self.path = path
        self._owner = owner
        self._is_named = False
        private_dir(path, owner.uid, owner.gid)
        self.lock_fd = _lock(path / LOCK_FILE, lock_wait_s)

    def write_identity(self, identity: DaemonIdentity) -> None:
        """``daemon.json``: how ``qmux status`` and its like find this daemon."""
        self._is_named = True
        _written(self.path / IDENTITY, msgspec.json.format(msgspec.json.encode(identity), indent=1) + b"\n", 0o644)

    def is_whole(self, has_admin: bool) -> bool:
        """Whether everything that makes this daemon found is still in its place: somebody may clean up /tmp or /run.

        ``has_admin``: the admin process listens, so that its socket must be there too.
        """
        names = (IDENTITY, *BUS_SOCKETS, *((ADMIN_SOCKET,) if has_admin else ()))
        return self._has_our_lock() and all(os.path.lexists(self.path / name) for name in names)

    def restore(self) -> None:
        """Put directory and lock back. Raises StartError where that cannot be, or another daemon has taken the place.

        Children that live keep the old lock; without it they end with the supervisor, as they always do, so that a
        successor may have to wait for the ports instead.
        """
        private_dir(self.path, self._owner.uid, self._owner.gid)
        if not self._has_our_lock():
            before, self.lock_fd = self.lock_fd, _lock(self.path / LOCK_FILE, 0)
            os.close(before)

    def close(self) -> None:
        """Remove what would look like a running daemon, if we ever were one and the directory is still ours.

        The lock file stays: removing one opens a race for it.
        """
        if self._is_named and self._has_our_lock():
            for name in (IDENTITY, ADMIN_SOCKET, *BUS_SOCKETS):
                (self.path / name).unlink(missing_ok=True)
        os.close(self.lock_fd)

    def _has_our_lock(self) -> bool:
        try:
            found = (self.path / LOCK_FILE).lstat()
        except OSError:
            return False  # gone with its directory, or nobody may look there any more
        return os.path.samestat(found, os.fstat(self.lock_fd))


def private_dir(path: Path, uid: int, gid: int) -> None:
    """Make ``path`` a directory of ``uid`` that no other user may enter. Raises StartError where that cannot be."""
    try:
        _make_parents(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
            raise StartError(f"{path}: exists and is not a directory of this user; remove it")
        # Only what is not so yet: the directory may be on a file system that was mounted read-only meanwhile.
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.chown(path, uid, gid, follow_symlinks=False)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}; {_advice(error)}") from None


def daemon_keys(state_dir: Path) -> Keys:
    """What all workers of this server share, derived from a secret that outlives restarts.

    So a restarted server can still end the connections of the one before (stateless reset, RFC 9000 §10.3.2).
    """
    private_dir(state_dir, os.geteuid(), os.getegid())
    secret = _secret(state_dir / "secret")
    return Keys(stateless_reset=_derive(secret, "reset"), retry=_derive(secret, "retry"), flow=_derive(secret, "flow"))


def random_keys() -> Keys:
    """Keys for a daemon that need not be recognised after a restart: a client."""
    return Keys(stateless_reset=os.urandom(32), retry=os.urandom(32), flow=os.urandom(32))


def _make_parents(parent: Path) -> None:
    if parent.exists():
        _check_parent(parent)
        return
    _make_parents(parent.parent)
    # The workers' user has to pass through what root makes; what a user makes is that user's alone.
    with contextlib.suppress(FileExistsError):
        parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)


def _check_parent(parent: Path) -> None:
    """Who can write to the parent could put another directory in our place."""
    found = parent.stat()
    foreign = found.st_uid not in (0, os.geteuid())
    open_to_all = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if foreign or open_to_all:
        raise StartError(f"{parent}: another user can write there; set a runtime_dir and state_dir below a safe one")


def _lock(path: Path, wait_s: float) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}; {_advice(error)}") from None
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise StartError(
                    f"{path.parent}: another daemon runs here (pid {holder}); "
                    "stop it, or set another runtime_dir for this one"
                ) from None
            time.sleep(LOCK_POLL_S)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise StartError(f"{path}: cannot be written: {error.strerror}; {_advice(error)}") from None
    return fd


def _secret(path: Path) -> bytes:
    try:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another daemon starts at the same time: its secret it is
                _write(path, os.urandom(SECRET_BYTES), 0o600, replace=False)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            secret = file.read(SECRET_BYTES + 1)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}; make it readable for this user, or set state_dir") from None
    if len(secret) != SECRET_BYTES:
        raise StartError(f"{path}: has {len(secret)} bytes instead of {SECRET_BYTES}; remove it to get a new one")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StartError(f"{path}: must belong to this user alone: chmod 600 {path}, chown it, or set state_dir")
    return secret


def _derive(secret: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"qmux {purpose}".encode()).derive(secret)


def _written(path: Path, content: bytes, mode: int) -> None:
    try:
        _write(path, content, mode)
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error.strerror}; {_advice(error)}") from None


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there (df -h, df -i), or set another runtime_dir and state_dir"
    return "create it, or set runtime_dir and state_dir"


def _write(path: Path, content: bytes, mode: int, *, replace: bool = True) -> None:
    """Write a file that is whole from the first moment on. Without ``replace`` raises FileExistsError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
