"""``qmuxc``: the client, in the foreground, configured by a file or by its arguments only."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmux import __version__
from qmux.cli import boundary, daemon
from qmux.errors import UsageError
from qmux.paths import text_of

if TYPE_CHECKING:
    from qmux.config.loaded import Loaded

EXAMPLE = """\b
Example:
  qmuxc -c client.toml
  qmuxc web=127.0.0.1:3000 --server tunnel.example.com --bundle client-a.pem
"""


@click.command(epilog=EXAMPLE)
@click.argument("services", nargs=-1, metavar="[FILE|DIR|NAME=TARGET...]")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="The configuration, also as an argument; default: ./client.toml, else /etc/qmux/client.toml.",
)
@click.option("--server", "servers", multiple=True, metavar="HOST[:PORT]", help="A server to connect to; repeatable.")
@click.option("--bundle", type=click.Path(path_type=Path), metavar="FILE", help="Chain, key and CA in one file.")
@click.option("--once", is_flag=True, help="Exit with the reason if it cannot connect, instead of retrying.")
@daemon.options
@click.version_option(__version__, prog_name="qmuxc", message="%(prog)s %(version)s")
def command(
    services: tuple[str, ...],
    config: Path | None,
    servers: tuple[str, ...],
    bundle: Path | None,
    once: bool,
    workers: daemon.Workers,
    engine: str | None,
    check: bool,
    log_level: str | None,
    log_format: str | None,
) -> int:
    """Run the QMux client: it dials out to the servers and forwards their user connections to the services here.

    TARGET is HOST:PORT or unix:/PATH. With NAME=TARGET, --server and --bundle no file is needed.
    """
    files = [Path(word) for word in services if _names_a_file(word)]
    config = daemon.one_file(files, config)
    services = tuple(word for word in services if not _names_a_file(word))
    if services or servers or bundle is not None:
        load = _from_arguments(services, config, servers, bundle, once)
    else:
        load = _from_file(daemon.config_path(config, "client"), once)

    def load_overridden() -> Loaded:
        return daemon.overridden(load(), workers, engine, log_level, log_format)

    return daemon.start(load_overridden, check_only=check)


def _names_a_file(word: str) -> bool:
    """Whether an argument is a configuration and not NAME=TARGET. A file with "=" in its name needs -c."""
    return "=" not in word and (word.endswith(".toml") or "/" in word or Path(word).exists())


def _from_arguments(
    services: tuple[str, ...], config: Path | None, servers: tuple[str, ...], bundle: Path | None, once: bool
) -> Callable[[], Loaded]:
    if config is not None:
        raise UsageError(f"{config} and NAME=TARGET, --server, --bundle exclude each other: put everything in the file")
    if not services:
        raise UsageError("which service? name it and where it is: NAME=HOST:PORT, for example web=127.0.0.1:3000")
    if not servers:
        raise UsageError("which server? --server HOST[:PORT] names it")
    if bundle is None:
        raise UsageError("which certificate? --bundle FILE names the one that `qmux pki issue client` wrote")
    # The bundle's whole path: the same words in another folder are another client, with a runtime directory of its own.
    named = [word for server in servers for word in ("--server", server)]
    source = text_of(shlex.join(["qmuxc", *services, *named, "--bundle", str(bundle.absolute())]))

    def load() -> Loaded:
        from qmux.config.arguments import client_from_arguments

        return client_from_arguments(services, servers, bundle, once=once, source=source)

    return load


def _from_file(path: Path, once: bool) -> Callable[[], Loaded]:
    def load() -> Loaded:
        from msgspec.structs import replace

        from qmux.config.load import load as load_config

        loaded = load_config(path, "client")
        return replace(loaded, config=replace(loaded.config, once=True)) if once else loaded

    return load


def main() -> None:
    """Entry point of ``qmuxc``."""
    sys.exit(boundary.run(command, "qmuxc", say=daemon.last_words))


if __name__ == "__main__":
    main()
