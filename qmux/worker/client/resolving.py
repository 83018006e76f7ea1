"""Which addresses a configured server has: every one behind a name is a server."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from qmux.config.schema import ServerAddress

MAX_ADDRESSES = 32
"""Of one name: more than any deployment has, and a bound on what a resolver can make us open."""


async def addresses(server: ServerAddress) -> tuple[tuple[str, int], ...]:
    """The numeric addresses of ``server``. Raises OSError (socket.gaierror) where it has none."""
    if _is_numeric(server.host):
        return ((server.host, server.port),)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
    numeric = [(str(info[4][0]), server.port) for info in found]
    return tuple(dict.fromkeys(numeric))[:MAX_ADDRESSES]


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
