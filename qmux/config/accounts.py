"""``user`` and ``group``: names or numbers of accounts. The check of a file and the daemon's start both ask here."""

from __future__ import annotations

import grp
import pwd

MAX_ID = (1 << 32) - 2
"""The largest number of a user or group; the one above means "leave it as it is" to chown(2)."""


class AccountError(ValueError):
    """There is no such account here: what to do."""


def find_user(name: str) -> tuple[int, int]:
    """(uid, gid) of the user with this name or number. Raises AccountError."""
    try:
        found = pwd.getpwuid(_number(name)) if _is_number(name) else pwd.getpwnam(name)
    except KeyError:
        advice = "name one that exists" if _is_number(name) else f"create it: {_create('user', name)}"
        raise AccountError(f"this machine has no such user; {advice}") from None
    return found.pw_uid, found.pw_gid


def find_group(name: str) -> int:
    """The gid of the group with this name; a number is taken as it is. Raises AccountError."""
    try:
        return _number(name) if _is_number(name) else grp.getgrnam(name).gr_gid
    except KeyError:
        raise AccountError(f"this machine has no such group; create it: {_create('group', name)}") from None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _number(name: str) -> int:
    if len(name) > len(str(MAX_ID)) or int(name) > MAX_ID:
        raise AccountError(f"the largest number is {MAX_ID}")
    return int(name)


def _create(kind: str, name: str) -> str:
    return f"useradd --system --shell /usr/sbin/nologin {name}" if kind == "user" else f"groupadd --system {name}"
