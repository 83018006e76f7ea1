"""``qmuxd``: the server, in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmux import __version__
from qmux.cli import boundary, daemon

if TYPE_CHECKING:
    from qmux.config.loaded import Loaded

EXAMPLE = """\b
Example:
  qmuxd -c server.toml
  qmuxd -c /etc/qmux/server.toml --workers 4 --log-format json
"""


@click.command(epilog=EXAMPLE)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|DIR]")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="The configuration, also as an argument; default: ./server.toml, else /etc/qmux/server.toml.",
)
@daemon.options
@click.version_option(__version__, prog_name="qmuxd", message="%(prog)s %(version)s")
def command(
    files: tuple[Path, ...],
    config: Path | None,
    workers: daemon.Workers,
    engine: str | None,
    check: bool,
    log_level: str | None,
    log_format: str | None,
) -> int:
    """Run the QMux server: users connect to it over TCP, clients over QUIC to serve them.

    SIGHUP or `qmux reload` applies a changed configuration; SIGTERM or Ctrl-C drains and stops; a second one stops now.
    """
    path = daemon.config_path(daemon.one_file(files, config), "server")

    def load() -> Loaded:
        from qmux.config.load import load as load_config

        return daemon.overridden(load_config(path, "server"), workers, engine, log_level, log_format)

    return daemon.start(load, check_only=check)


def main() -> None:
    """Entry point of ``qmuxd``."""
    sys.exit(boundary.run(command, "qmuxd", say=daemon.last_words))


if __name__ == "__main__":
    main()
