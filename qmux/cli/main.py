"""``qmux``: everything that is not a daemon. Each command's module is imported when it is used."""

from __future__ import annotations

import importlib
import sys

import click

from qmux import __version__
from qmux.cli import boundary
from qmux.cli.groups import CommandGroup

COMMANDS = {
    "demo": "qmux.cli.demo",
    "init": "qmux.cli.init",
    "check": "qmux.cli.check",
    "status": "qmux.cli.status",
    "reload": "qmux.cli.reload",
    "pki": "qmux.cli.pki",
    "completion": "qmux.cli.completion",
}
"""Name → module with a click command called ``command``; in the order of the help page."""

EXAMPLE = """\b
Example:
  qmux demo                        try it on this machine
  qmux pki init                    then: issue server, issue client, init, check, qmuxd, qmuxc
  qmux status                      what the running daemon serves
"""


class LazyGroup(CommandGroup):
    """A group whose commands are imported on demand, so that ``qmux --help`` and completion answer at once."""

    later = ("top", "doctor", "drain", "undrain", "disconnect")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = importlib.import_module(COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, epilog=EXAMPLE)
@click.version_option(__version__, prog_name="qmux", message="%(prog)s %(version)s")
def command() -> None:
    """QMux exposes a TCP service behind NAT or inside Kubernetes. The daemons are qmuxd and qmuxc."""


def main() -> None:
    """Entry point of ``qmux``."""
    sys.exit(boundary.run(command, "qmux"))


if __name__ == "__main__":
    main()
