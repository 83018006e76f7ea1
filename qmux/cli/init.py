"""``qmux init``: write an annotated configuration."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TypeVar

import click

from qmux.cli.groups import CommandGroup
from qmux.config.addresses import AddressError, parse_bind, parse_server, parse_target
from qmux.config.services import is_service_name
from qmux.errors import UsageError
from qmux.paths import text_of

SERVER_EXAMPLE = """\b
Example:
  qmux init server --service web=:80 --bundle tunnel.example.com.pem
"""
CLIENT_EXAMPLE = """\b
Example:
  qmux init client --service web=127.0.0.1:3000 --server tunnel.example.com:8443 --bundle pod-1.pem
"""

Parsed = TypeVar("Parsed")


@click.group(cls=CommandGroup, epilog=SERVER_EXAMPLE)
def command() -> None:
    """Write an annotated configuration. On a terminal it asks for what the options leave out."""


@command.command("server", epilog=SERVER_EXAMPLE)
@click.option(
    "--service", "services", multiple=True, metavar="NAME=BIND", help="A service and where users connect; repeatable."
)
@click.option("--quic-bind", metavar="ADDRESS", help="Where clients connect (UDP); default :8443.")
@click.option("--bundle", metavar="FILE", help="Chain, key and CA in one file; default server.pem.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="server.toml", help="Default: server.toml.")
def server(services: tuple[str, ...], quic_bind: str | None, bundle: str | None, output: Path) -> None:
    """Write the configuration of a server."""
    _refuse_existing(output)
    services = services or (_ask("Service, as NAME=BIND", "web=:80"),)
    quic_bind = quic_bind or _ask("Where clients connect (UDP)", ":8443")
    _parsed(quic_bind, parse_bind)
    bundle = bundle or _ask("Bundle of certificate, key and CA", "server.pem")
    sections = [
        _fill("server-service.toml", key=_key(name), name=name, bind=_quoted(bind))
        for name, bind in _split(services, "NAME=BIND", parse_bind)
    ]
    values = {"bundle": _quoted(bundle), "quic_bind": _quoted(quic_bind), "services": "".join(sections)}
    _write(output, _fill("server.toml", file=text_of(output), **values))
    _say_next(output, bundle, "qmux pki init, then qmux pki issue server NAME", "qmuxd")


@command.command("client", epilog=CLIENT_EXAMPLE)
@click.option(
    "--service", "services", multiple=True, metavar="NAME=TARGET", help="A service and its address; repeatable."
)
@click.option("--server", "servers", multiple=True, metavar="HOST[:PORT]", help="A server to connect to; repeatable.")
@click.option("--bundle", metavar="FILE", help="Chain, key and CA in one file; default client.pem.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="client.toml", help="Default: client.toml.")
def client(services: tuple[str, ...], servers: tuple[str, ...], bundle: str | None, output: Path) -> None:
    """Write the configuration of a client."""
    _refuse_existing(output)
    services = services or (_ask("Service, as NAME=TARGET", "web=127.0.0.1:3000"),)
    servers = servers or (_ask_needed("Server, as HOST or HOST:PORT", "which server? --server HOST[:PORT] names it"),)
    bundle = bundle or _ask("Bundle of certificate, key and CA", "client.pem")
    pairs = _split(services, "NAME=TARGET", lambda target: parse_target(target, output.parent))
    sections = [_fill("client-service.toml", key=_key(name), target=_quoted(target)) for name, target in pairs]
    listed = "[" + ", ".join(_quoted(str(_parsed(server, parse_server))) for server in servers) + "]"
    values = {"bundle": _quoted(bundle), "servers": listed, "services": "".join(sections)}
    _write(output, _fill("client.toml", file=text_of(output), **values))
    options = " ".join(f"--service {name}" for name, _ in pairs)
    _say_next(output, bundle, f"qmux pki issue client NAME {options}, where the CA is", "qmuxc")


def _ask(question: str, default: str) -> str:
    """On a terminal, the user's answer; elsewhere (a script, a container build) the default."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return default
    return str(click.prompt(question, default=default))


def _ask_needed(question: str, missing: str) -> str:
    """The user's answer. Raises UsageError elsewhere than on a terminal: no default could be right."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(missing)
    return str(click.prompt(question))


def _split(services: Sequence[str], form: str, parse: Callable[[str], object]) -> list[tuple[str, str]]:
    """The names with their addresses. Raises UsageError if one is not of the form ``form``."""
    pairs: dict[str, str] = {}
    for service in services:
        name, equals, address = service.partition("=")
        if not equals or not is_service_name(name):
            raise UsageError(f'"{service}" is not {form}: a name of letters, digits, dot, dash, "_", and an address')
        if name in pairs:
            raise UsageError(f'service "{name}" is named twice; each has one section')
        _parsed(address, parse)
        pairs[name] = address
    return list(pairs.items())


def _parsed(address: str, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(address)
    except AddressError as error:
        raise UsageError(f'"{address}": {error}') from None


def _key(name: str) -> str:
    """A TOML key: quoted if it has a dot, which would make two keys of it."""
    return _quoted(name) if "." in name else name


def _quoted(value: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's (toml.io/en/v1.0.0#string)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{value}: is no UTF-8, which a TOML file must be; give it another name") from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _fill(template: str, **values: str) -> str:
    text = resources.files("qmux.cli").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already and was left alone; name another file with -o FILE")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_existing(path)
        raise


def _say_next(output: Path, bundle: str, issue: str, daemon: str) -> None:
    file = shlex.quote(str(output))
    click.echo(f"{output}: written")
    if not (output.parent / bundle).exists():
        click.echo(f"next: {issue}; it writes the bundle")
    click.echo(f"next: qmux check {file} && {daemon} -c {file}")
