"""Which daemon a command talks to: the one of ``-c FILE``, of ``--socket PATH``, or the only one that runs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from qmux.cli import daemon
from qmux.errors import UnreachableError, UsageError
from qmux.paths import path_of, text_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ADMIN_SOCKET = "admin.sock"


class RunningDaemon(NamedTuple):
    """A daemon that runs, by its runtime directory."""

    directory: Path
    role: str
    pid: int
    source: str
    socket: Path


def options(command: Decorated) -> Decorated:
    """The options that name a daemon."""

    @functools.wraps(command)
    def merged(*, files: tuple[Path, ...], config: Path | None, **others: Any) -> Any:
        return command(config=daemon.one_file(files, config), **others)

    decorated: Any = merged
    for option in (
        click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|DIR]"),
        click.option("--socket", type=click.Path(path_type=Path), metavar="PATH", help="The daemon's admin.sock."),
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE|DIR",
            help="The daemon's configuration, also as an argument.",
        ),
    ):
        decorated = option(decorated)
    return cast(Decorated, decorated)


def admin_socket(config: Path | None, socket: Path | None) -> Path:
    """The admin socket of the daemon. Raises UsageError if it is not clear which one is meant, UnreachableError if it
    does not run.
    """
    if config is not None and socket is not None:
        raise UsageError("-c FILE and --socket PATH exclude each other: one of them names the daemon")
    if socket is not None:
        return socket
    if config is not None:
        return _of_config(config)
    daemons = running()
    if not daemons:
        raise UnreachableError(
            "no daemon of this user runs; start one (qmuxd -c FILE, qmuxc -c FILE), or name it with -c FILE or "
            "--socket PATH; one of another user, root for instance, is seen by that user: sudo qmux …"
        )
    if len(daemons) > 1:
        listed = "\n".join(f"  {daemon.role:6}  pid {daemon.pid:<8} {daemon.source}" for daemon in daemons)
        raise UsageError(f"{len(daemons)} daemons run; name one with -c FILE or --socket PATH:\n{listed}")
    return daemons[0].socket


def running() -> list[RunningDaemon]:
    """The daemons of this user that run now, by source."""
    from qmux.config.directories import running_dirs

    found = [_describe(directory) for directory in running_dirs()]
    return sorted((daemon for daemon in found if daemon is not None), key=lambda daemon: daemon.source)


def _describe(directory: Path) -> RunningDaemon | None:
    """The daemon of a directory; None while it starts or stops, when ``daemon.json`` is missing or incomplete."""
    try:
        facts = json.loads((directory / "daemon.json").read_text())
        socket = Path(path_of(facts["admin_socket"])) if facts.get("admin_socket") else directory / ADMIN_SOCKET
        return RunningDaemon(directory, str(facts["role"]), int(facts["pid"]), str(facts["source"]), socket)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_config(path: Path) -> Path:
    from qmux.config.directories import is_running

    directory = _directory_of(path)
    if not is_running(directory):
        raise UnreachableError(
            f"{path}: no daemon runs with this configuration ({directory} has no live one); start it"
        )
    daemon = _describe(directory)
    return daemon.socket if daemon is not None else directory / ADMIN_SOCKET


def _directory_of(path: Path) -> Path:
    """The runtime directory of a file's daemon. The file need not be readable for us (a systemd credential is its
    daemon's alone) where the daemon has its default directory. Else only the keys that decide it are read, so a file
    with an error in it, or with an expired certificate, still finds the running daemon.
    """
    from qmux.config.directories import default_runtime_dir
    from qmux.config.document import read_document

    for running_one in running():
        if running_one.source == text_of(os.path.abspath(path)):
            return running_one.directory
    try:
        os.stat(path)
    except OSError as error:
        hint = "" if isinstance(error, FileNotFoundError) else "; name the daemon with --socket PATH instead"
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}{hint}") from None
    document = read_document(path)
    role = "client" if "client" in document.tree else "server"
    table = document.tree.get(role)
    named = table.get("runtime_dir") if isinstance(table, dict) else None
    if isinstance(named, str) and named:
        return (document.base / named).absolute()
    return default_runtime_dir(role, text_of(document.source_path))
