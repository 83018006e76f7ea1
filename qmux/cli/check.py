"""``qmux check``: check configurations without starting anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qmux.cli import machine
from qmux.errors import ConfigError
from qmux.paths import text_of

EXAMPLE = """\b
Example:
  qmux check server.toml client.toml
"""


@click.command(epilog=EXAMPLE)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object for each FILE.")
def command(files: tuple[Path, ...], as_json: bool) -> int:
    """Check configurations and the certificates that they name; report every error, with line numbers.

    FILE may be a directory of *.toml files. With [client] it is a client's, else a server's. Exits with 3 if there is
    an error.
    """
    results = [_check(path) for path in files]
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        for result in results:
            _print(result)
    return 0 if all(result["ok"] for result in results) else ConfigError.exit_code


def _check(path: Path) -> dict[str, Any]:
    from qmux.config.load import load

    try:
        loaded = load(path)
        machine.check(loaded, text_of(path))
    except ConfigError as error:
        return {"file": text_of(path), "ok": False, "errors": list(error.problems), "warnings": []}
    return {"file": text_of(path), "ok": True, "errors": [], "warnings": list(loaded.warnings)}


def _print(result: dict[str, Any]) -> None:
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if result["ok"]:
        click.echo(f"{result['file']}: ok")
    else:
        click.echo(str(ConfigError(result["errors"], result["file"])), err=True)
