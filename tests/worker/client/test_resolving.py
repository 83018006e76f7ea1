from __future__ import annotations

import socket
from typing import Any

import pytest

from qmux.config.schema import ServerAddress
from qmux.resolver import MAX_ADDRESSES, Resolver
from qmux.worker.client.resolving import addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%eth0"])
async def test_an_address_is_not_looked_up(host: str) -> None:
    assert await addresses(ServerAddress(host, 8443), Resolver()) == ((host, 8443),)


async def test_a_name_of_this_machine() -> None:
    found = await addresses(ServerAddress("localhost", 8443), Resolver())
    assert set(found) <= {("127.0.0.1", 8443), ("::1", 8443)}
    assert found


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(socket.gaierror):
        await addresses(ServerAddress("no such name", 8443), Resolver())


@pytest.mark.asyncio_loop
async def test_every_address_of_a_name_once_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [f"192.0.2.{number}" for number in range(1, 100)]

    def getaddrinfo(host: str, _: None, **__: int) -> list[Any]:
        assert host == "many.internal"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in [found[0], *found]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolved = await addresses(ServerAddress("many.internal", 8443), Resolver())
    assert resolved == tuple((each, 8443) for each in found[:MAX_ADDRESSES])
