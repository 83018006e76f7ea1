"""The user that the children run as: ``user`` and ``group``, and whether that user can run the interpreter at all."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from qmux.config import limits
from qmux.config.accounts import AccountError, find_group, find_user
from qmux.config.schema import ProcessConfig
from qmux.errors import StartError

log = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 20.0

_CANNOT_ENTER = 77
_TRIAL = f"""
import os, sys
import qmux.channel
try:
    os.chdir(sys.argv[1])
except OSError:
    sys.exit({_CANNOT_ENTER})
"""


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

    Raises StartError where they cannot be used; ``try_interpreter`` finds out more.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not process.user and not process.group:
        return Owner(uid, gid, drops=False)
    key, name = f"{table}.user", process.user
    try:
        if process.user:
            uid, gid = find_user(process.user)
        key, name = f"{table}.group", process.group
        if process.group:
            gid = find_group(process.group)
    except AccountError as error:
        raise StartError(f'{key} = "{name}": {error}') from None
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return Owner(uid, gid, drops=False)
    if os.geteuid() != 0:
        raise StartError(
            f'{table}.user = "{process.user}": only root can start workers as another user; '
            f"start as root, or as {process.user or 'that user'} without user and group"
        )
    return Owner(uid, gid, drops=True)


def warn_of_root(owner: Owner, table: str) -> None:
    """One line where the children keep root's privileges; for a daemon that starts, not one that fails to."""
    if owner.uid == 0 and not owner.drops:
        log.warning("running as root, workers too: set user to drop their privileges", extra={"key": f"{table}.user"})


def try_interpreter(owner: Owner, table: str, enter: str = "/") -> None:
    """Raise StartError where ``owner`` cannot run this interpreter, or cannot enter the directory ``enter``.

    A user that may not pass through the directories above the interpreter (a 0700 home) could run no worker.
    """
    if not owner.drops:
        return
    try:
        trial = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL, enter],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            **owner.popen_arguments(),
        )
    except subprocess.TimeoutExpired:
        reason = f"it did not start within {TRIAL_TIMEOUT_S:.0f} s"
    except OSError as error:
        reason = limits.of_tasks() if error.errno == errno.EAGAIN else error.strerror or str(error)
    else:
        if trial.returncode == 0:
            return
        if trial.returncode == _CANNOT_ENTER:
            raise StartError(
                f"{enter}: {table}.user (uid {owner.uid}) cannot enter it; chmod a+x the directories above it"
            )
        reason = trial.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1] or f"status {trial.returncode}"
    raise StartError(
        f"{table}.user (uid {owner.uid}) cannot run {sys.executable}: {reason}; "
        "install QMux where every user may read and enter, such as /opt/qmux or /usr/local"
    )


def raise_file_limit() -> None:
    """Let this process and its children open as many files as they may: each user connection takes at least one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
