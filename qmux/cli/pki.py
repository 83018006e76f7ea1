"""``qmux pki``: one CA for a deployment, and a bundle for each server and client."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qmux.cli.groups import CommandGroup

if TYPE_CHECKING:
    from qmux.pki.holding import Holding

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
RENEW_EXAMPLE = """\b
Example:
  qmux pki renew tunnel.example.com
  qmux pki renew pod-1 --drop api
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


def _drop(metavar: str, text: str) -> Callable[[Decorated], Decorated]:
    return click.option("--drop", multiple=True, metavar=metavar, help=text)


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
    """Issue a bundle: chain, key and CA in one file. Issued again for a name, it is renewed and loses nothing."""


@issue.command("server", epilog=ISSUE_SERVER_EXAMPLE)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_drop("NAME", "A name that the renewed bundle shall not have any more; repeatable.")
@_directory
def issue_server(names: tuple[str, ...], drop: tuple[str, ...], directory: Path) -> None:
    """Issue a server's bundle. NAME: the DNS names and IP addresses that clients connect to.

    A bundle that is there is renewed: it keeps its names, and gets the others.
    """
    from qmux.pki import authority

    before = authority.holding(directory, names[0])
    path = authority.issue_server(directory, names, drop)
    _say(directory, names[0], path, before, asked=[authority.server_name(name) for name in names])
    if before is None:
        line = f'next: bundle = "{path}" in [server]; `qmux init server --bundle {shlex.quote(str(path))}` writes one'
        click.echo(line)


@issue.command("client", epilog=ISSUE_CLIENT_EXAMPLE)
@click.argument("name")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="S",
    help="A service that the client may serve; repeatable; '*': all.",
)
@_drop("S", "A service that the renewed bundle shall not allow any more; repeatable.")
@_directory
def issue_client(name: str, services: tuple[str, ...], drop: tuple[str, ...], directory: Path) -> None:
    """Issue a client's bundle. NAME: the client's name in status and logs of the server.

    A bundle that is there is renewed: it keeps its services, and gets the others.
    """
    from qmux.pki import authority

    before = authority.holding(directory, name)
    path = authority.issue_client(directory, name, services, drop)
    _say(directory, name, path, before, asked=services)
    if before is None:
        click.echo(f"next: qmuxc {services[0]}=127.0.0.1:3000 --server HOST --bundle {shlex.quote(str(path))}")


@command.command(epilog=RENEW_EXAMPLE)
@click.argument("name")
@_drop("NAME", "A name (of a server) or service (of a client) that it shall not have any more; repeatable.")
@_directory
def renew(name: str, drop: tuple[str, ...], directory: Path) -> None:
    """Issue the bundle NAME.pem again, with its names and services: a new key, and a new year.

    NAME: the first name of a server, or a client's name.
    """
    from qmux.pki import authority

    before = authority.holding(directory, name)
    path = authority.renew(directory, name, drop)
    _say(directory, name, path, before, asked=before.kept if before is not None else ())
    click.echo("next: copy it to where the old one is, and run `qmux reload` there")


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


def _say(directory: Path, name: str, path: Path, before: Holding | None, asked: Sequence[str]) -> None:
    """What the bundle has now, what it kept unasked, and what it lost."""
    from qmux.pki import authority

    after = authority.holding(directory, name)
    assert after is not None, "it was just written"
    what = f"server {', '.join(after.names)}"
    if after.role == "client":
        what = f"client {after.names[0]}, may serve {', '.join(after.services)}"
    click.echo(f"{path}: {what}, {authority.LEAF_DAYS} days")
    if before is None:
        return
    if kept := [each for each in before.kept if each in after.kept and each not in asked]:
        drops = " ".join(f"--drop {shlex.quote(each)}" for each in kept)
        click.echo(f"kept from before: {', '.join(kept)}; to take away: {drops}")
    if lost := [each for each in before.kept if each not in after.kept]:
        click.echo(f"dropped: {', '.join(lost)}")


def _dir_option(directory: Path) -> str:
    return "" if directory == Path(".") else f" --dir {shlex.quote(str(directory))}"
