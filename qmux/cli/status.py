"""``qmux status``: services, clients or servers, and processes of a running daemon."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from qmux.admin import model
from qmux.cli import api, find, picture
from qmux.errors import UnreachableError

WATCH_S = 2.0

EXAMPLE = """\b
Example:
  qmux status
  qmux status -c server.toml --json
"""


@click.command(epilog=EXAMPLE)
@find.options
@click.option("--json", "as_json", is_flag=True, help="Print everything as a JSON object; with --watch, one per line.")
@click.option("--watch", is_flag=True, help="Repeat every 2 s, until Ctrl-C.")
def command(config: Path | None, socket: Path | None, as_json: bool, watch: bool) -> None:
    """Show what the running daemon serves."""
    path = find.admin_socket(config, socket)
    _show(path, as_json, None if watch else 2)
    while watch:
        time.sleep(WATCH_S)
        if not as_json:
            click.clear()  # nothing where stdout is no terminal
        _show(path, as_json, None)


def _show(path: Path, as_json: bool, indent: int | None) -> None:
    status = api.status(path)
    if as_json:
        click.echo(json.dumps(status, indent=indent))
    else:
        click.echo("\n".join(picture.lines(_typed(path, status), time.time())))


def _typed(path: Path, status: dict[str, Any]) -> model.Status:
    try:
        return model.from_json(status)
    except msgspec.ValidationError as error:
        what = "it has only just started" if not status else f"its status is another release's ({error}): try --json"
        raise UnreachableError(f"{path}: nothing to show yet: {what}") from None
