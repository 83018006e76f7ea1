"""Which addresses a configured server has: every one behind a name is a server."""

from __future__ import annotations

import ipaddress

from qmux.config.schema import ServerAddress
from qmux.resolver import Resolver


async def addresses(server: ServerAddress, resolver: Resolver) -> tuple[tuple[str, int], ...]:
    """The numeric addresses of ``server``. Raises OSError (socket.gaierror) where it has none."""
    if _is_numeric(server.host):
        return ((server.host, server.port),)
    found = await resolver.addresses(server.host)
    return tuple(dict.fromkeys((str(address[0]), server.port) for _, address in found))


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
