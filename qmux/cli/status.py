"""``qmux status``: services, clients or servers, and processes of a running daemon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from qmux.cli import api, find, picture

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
        click.echo("\n".join(picture.lines(status, time.time())))
