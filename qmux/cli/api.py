"""Asking a daemon's admin process: JSON over HTTP on its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from qmux.errors import UnreachableError

STATUS_TIMEOUT_S = 5.0
RELOAD_TIMEOUT_S = 65.0
"""A little more than the admin process itself waits for the supervisor."""

MAX_ANSWER_BYTES = 64 << 20
"""A daemon with 4,096 clients answers with some 2 MiB."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at ``path``."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("qmux", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def status(path: Path) -> dict[str, Any]:
    """The daemon's state. Raises UnreachableError."""
    return _ask(path, "GET", "/v1/status", None, STATUS_TIMEOUT_S)


def reload(path: Path, *, dry_run: bool, full: bool) -> dict[str, Any]:
    """Ask for a reload; the answer has ``ok``, ``lines`` and ``exit_code``. Raises UnreachableError."""
    return _ask(path, "POST", "/v1/reload", {"dry_run": dry_run, "full": full}, RELOAD_TIMEOUT_S)


def _ask(path: Path, method: str, target: str, body: object, timeout_s: float) -> dict[str, Any]:
    connection = _UnixConnection(path, timeout_s)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request(method, target, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES)
        if response.length:
            raise http.client.IncompleteRead(answer, response.length)
        if response.status != 200:
            raise UnreachableError(f"{path}: the daemon answered {response.status} {response.reason} to {target}")
        result = json.loads(answer)
    except TimeoutError:
        raise UnreachableError(
            f"{path}: the daemon did not answer within {timeout_s:.0f} s; its log may say why"
        ) from None
    except FileNotFoundError:
        raise UnreachableError(f"{path}: no such socket; is the daemon running?") from None
    except ConnectionRefusedError:
        raise UnreachableError(
            f"{path}: nothing listens there; the daemon has stopped, or its admin process is restarting"
        ) from None
    except PermissionError:
        raise UnreachableError(
            f"{path}: this user may not talk to the daemon; ask as the user that it runs as"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(f"{path}: no valid answer from the daemon: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if not isinstance(result, dict):
        raise UnreachableError(f"{path}: no valid answer from the daemon: it is not an object")
    return result
