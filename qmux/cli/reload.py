"""``qmux reload``: apply a changed configuration to the running daemon, or show what would change."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qmux.cli import api, find
from qmux.errors import ConditionError, QmuxError, UsageError

EXAMPLE = """\b
Example:
  qmux reload --dry-run
  qmux reload -c server.toml
"""


@click.command(epilog=EXAMPLE)
@find.options
@click.option("--dry-run", is_flag=True, help="Show what would change, and how; apply nothing.")
@click.option("--full", is_flag=True, help="Replace all processes; not available in this version.")
@click.option(
    "--restart-later", is_flag=True, help="Exit with 0 where all was applied but what waits for a restart (else 6)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as a JSON object.")
def command(
    config: Path | None, socket: Path | None, dry_run: bool, full: bool, restart_later: bool, as_json: bool
) -> int:
    """Apply the daemon's changed configuration without closing a connection.

    A file with an error changes nothing: the errors are printed and the daemon keeps its configuration.
    """
    if full:
        raise UsageError("--full is not available in this version; what needs new processes needs a restart")
    answer = api.reload(find.admin_socket(config, socket), dry_run=dry_run, full=full)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        for line in answer.get("lines", []):
            click.echo(line, err=not answer.get("ok"))
    code = int(answer.get("exit_code", 0))
    if restart_later and answer.get("ok") and code == ConditionError.exit_code:
        return 0
    return code or (0 if answer.get("ok") else QmuxError.exit_code)
