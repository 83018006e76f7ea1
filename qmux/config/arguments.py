"""A client without a file: ``qmuxc web=127.0.0.1:3000 --server HOST[:PORT] --bundle FILE``."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from qmux.config.addresses import AddressError, certified_name, parse_server, parse_target
from qmux.config.client import MAX_INSTANCE, MAX_SERVERS
from qmux.config.loaded import Loaded
from qmux.config.material import load_material
from qmux.config.schema import ClientConfig, ClientServiceConfig, ProcessConfig, ServerAddress, Target, TlsFiles
from qmux.config.services import MAX_SERVICES, is_service_name
from qmux.errors import ConfigError, UsageError
from qmux.paths import text_of

T = TypeVar("T")


def client_from_arguments(
    services: Sequence[str], servers: Sequence[str], bundle: Path, *, once: bool, source: str
) -> Loaded:
    """The configuration that the arguments ask for; what they leave out has the defaults of a file.

    ``source``: the arguments as one text, from which the runtime directory gets its name. Raises UsageError where an
    argument cannot be read, ConfigError with every problem of the certificate material.
    """
    targets = _targets(services)
    config = ClientConfig(
        source=source,
        process=ProcessConfig(tls=TlsFiles(bundle=text_of(os.path.abspath(bundle))), workers=1),
        servers=_servers(servers),
        services={name: ClientServiceConfig(name=name, target=target) for name, target in targets.items()},
        instance=socket.gethostname()[:MAX_INSTANCE],
        once=once,
    )
    now = datetime.datetime.now(datetime.UTC)
    checked = load_material(config.process.tls, "client", list(targets), now)
    lines = [f"--bundle {bundle}: {finding.text}" for finding in checked.findings if not finding.is_warning]
    if lines or checked.material is None:
        raise ConfigError(lines, "the arguments")
    warnings = tuple(f"--bundle {bundle}: {finding.text}" for finding in checked.findings)
    return Loaded(config, checked.material, warnings)


def _targets(services: Sequence[str]) -> dict[str, Target]:
    if not services:
        raise UsageError("which service does this client serve? name one as in web=127.0.0.1:3000, or a file with -c")
    if len(services) > MAX_SERVICES:
        raise UsageError(f"{len(services)} services; at most {MAX_SERVICES}")
    targets: dict[str, Target] = {}
    for argument in services:
        name, equals, target = argument.partition("=")
        if not equals or not target:
            raise UsageError(f'"{argument}": a service is a name and a target, as in web=127.0.0.1:3000')
        if not is_service_name(name):
            rule = "letters, digits, dot, dash and underscore, at most 64"
            raise UsageError(f'"{argument}": "{name}" is not a name for a service; a name has {rule}')
        if name in targets:
            raise UsageError(f'"{argument}": the service {name} is there twice; name it once')
        targets[name] = _parse(argument, target, lambda text: parse_target(text, Path.cwd()))
    return targets


def _servers(servers: Sequence[str]) -> tuple[ServerAddress, ...]:
    if not servers:
        raise UsageError("which server should it connect to? --server HOST[:PORT]")
    if len(servers) > MAX_SERVERS:
        raise UsageError(f"{len(servers)} servers; at most {MAX_SERVERS}")
    parsed = {_parse(f"--server {server}", server, parse_server): server for server in servers}
    for address, server in parsed.items():
        try:
            certified_name(address)
        except AddressError as error:
            raise UsageError(f"--server {server}: {error}") from None
    return tuple(parsed)


def _parse(argument: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except AddressError as error:
        raise UsageError(f"{argument}: {error}") from None
