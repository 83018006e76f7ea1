"""Whom the children run as: ``user`` and ``group``, and whether that user can run the interpreter at all."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from qmux.config.schema import ProcessConfig
from qmux.errors import StartError

log = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Owner:
    """The user of the children. ``drops``: it is another one than ours."""

    uid: int
    gid: int
    drops: bool

    def popen_arguments(self) -> dict[str, Any]:
        """For ``subprocess``: nothing is kept of our groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drops else {}


def owner_of(process: ProcessConfig, table: str) -> Owner:
    """The user that ``user`` and ``group`` name, or ours. ``table`` ("server", "client") is for messages.

    Raises StartError where they cannot be used.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not process.user and not process.group:
        if uid == 0:
            log.warning(
                "running as root, workers too: set user to drop their privileges", extra={"key": f"{table}.user"}
            )
        return Owner(uid, gid, drops=False)
    if process.user:
        account = _account(process.user, table)
        uid, gid = account.pw_uid, account.pw_gid
    if process.group:
        gid = _group(process.group, table)
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return Owner(uid, gid, drops=False)
    if os.geteuid() != 0:
        raise StartError(
            f'{table}.user = "{process.user}": only root can start workers as another user; '
            f"start as root, or as {process.user or 'that user'} without user and group"
        )
    owner = Owner(uid, gid, drops=True)
    _try_interpreter(owner, process.user, table)
    return owner


def raise_file_limit() -> None:
    """Let this process and its children open as many files as they may: each user connection takes at least one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _account(name: str, table: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise StartError(
            f'{table}.user = "{name}": this machine has no such user; '
            f"create it: useradd --system --shell /usr/sbin/nologin {name}"
        ) from None


def _group(name: str, table: str) -> int:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(f'{table}.group = "{name}": this machine has no such group') from None


def _try_interpreter(owner: Owner, user: str, table: str) -> None:
    """A user that may not enter the directory of the interpreter (a 0700 home) could run no worker."""
    try:
        trial = subprocess.run(
            [sys.executable, "-P", "-c", "import qmux.channel"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            **owner.popen_arguments(),
        )
        reason = trial.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1] if trial.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"it did not start within {TRIAL_TIMEOUT_S:.0f} s"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise StartError(
            f'{table}.user = "{user}": this user cannot run {sys.executable} ({reason}); '
            "install QMux where every user may read and enter, such as /opt/qmux or /usr/local"
        )
