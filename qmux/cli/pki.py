"""``qmux pki``: one CA for a deployment, and a bundle for each server and client."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qmux.cli.groups import CommandGroup

EXAMPLE = """\b
Example:
  qmux pki init --dir pki
  qmux pki issue server tunnel.example.com --dir pki
  qmux pki issue client pod-1 --service web --dir pki
"""
ISSUE_SERVER_EXAMPLE = """\b
Example:
  qmux pki issue server tunnel.example.com 192.0.2.1
"""
ISSUE_CLIENT_EXAMPLE = """\b
Example:
  qmux pki issue client pod-1 --service web --service api
"""
SHOW_EXAMPLE = """\b
Example:
  qmux pki show tunnel.example.com.pem
"""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _directory(command: Decorated) -> Decorated:
    option = click.option(
        "--dir",
        "directory",
        default=".",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Directory of ca.pem, ca.key and the bundles; default: the current one.",
    )
    return option(command)


class PkiGroup(CommandGroup):
    """The commands of ``qmux pki``, with those of a later version."""

    later = ("enroll", "request", "sign", "revoke")


@click.group(cls=PkiGroup, epilog=EXAMPLE)
def command() -> None:
    """Issue and show certificates. Keys are files that only their owner can read; ca.key can stay offline."""


@command.command(epilog="\b\nExample:\n  qmux pki init --dir pki")
@_directory
def init(directory: Path) -> None:
    """Create the CA of a deployment, once: ca.pem and ca.key."""
    from qmux.pki import authority

    path = authority.init(directory)
    click.echo(f"{path}: a CA for {authority.CA_DAYS // 365} years; {directory / 'ca.key'}: its key, keep it safe")
    click.echo(f"next: qmux pki issue server NAME{_dir_option(directory)}, with the name that clients dial")


@command.group(cls=CommandGroup, epilog="\b\nExample:\n  qmux pki issue client pod-1 --service web")
def issue() -> None:
    """Issue a bundle: chain, key and CA in one file. Issuing it again for the same name renews it."""


@issue.command("server", epilog=ISSUE_SERVER_EXAMPLE)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_directory
def issue_server(names: tuple[str, ...], directory: Path) -> None:
    """Issue a server's bundle. NAME: the DNS names and IP addresses that clients connect to."""
    from qmux.pki import authority

    path = authority.issue_server(directory, names)
    click.echo(f"{path}: server {', '.join(names)}, {authority.LEAF_DAYS} days")
    click.echo(f'next: bundle = "{path}" in [server]; `qmux init server --bundle {shlex.quote(str(path))}` writes one')


@issue.command("client", epilog=ISSUE_CLIENT_EXAMPLE)
@click.argument("name")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="S",
    help="A service that the client may serve; repeatable; '*': all.",
)
@_directory
def issue_client(name: str, services: tuple[str, ...], directory: Path) -> None:
    """Issue a client's bundle. NAME: the client's name in status and logs of the server."""
    from qmux.pki import authority

    path = authority.issue_client(directory, name, services)
    click.echo(f"{path}: client {name}, may serve {', '.join(services)}, {authority.LEAF_DAYS} days")
    click.echo(f"next: qmuxc {services[0]}=127.0.0.1:3000 --server HOST --bundle {shlex.quote(str(path))}")


@command.command(epilog=SHOW_EXAMPLE)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object for each certificate.")
def show(file: Path, as_json: bool) -> None:
    """Show the certificates in FILE: names, services, validity, fingerprint, issuer. Keys are never printed."""
    from qmux.pki import description

    certificates = description.describe_file(file)
    if as_json:
        click.echo(json.dumps(certificates, indent=2))
    else:
        click.echo("\n\n".join(description.as_text(certificate) for certificate in certificates))


def _dir_option(directory: Path) -> str:
    return "" if directory == Path(".") else f" --dir {shlex.quote(str(directory))}"
