from __future__ import annotations

import socket
from typing import Any

import pytest

from qmux.config.schema import ServerAddress
from qmux.worker.client.resolving import MAX_ADDRESSES, addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%eth0"])
async def test_an_address_is_not_looked_up(host: str) -> None:
    assert await addresses(ServerAddress(host, 8443)) == ((host, 8443),)


async def test_a_name_of_this_machine() -> None:
    found = await addresses(ServerAddress("localhost", 8443))
    assert set(found) <= {("127.0.0.1", 8443), ("::1", 8443)}
    assert found


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(socket.gaierror):
        await addresses(ServerAddress("no such name", 8443))


@pytest.mark.asyncio_loop
async def test_every_address_of_a_name_once_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [f"192.0.2.{number}" for number in range(1, 100)]

    def getaddrinfo(host: str, port: int, family: int, kind: int, *_: int) -> list[Any]:
        assert (host, kind) == ("many.internal", socket.SOCK_DGRAM)
        return [(socket.AF_INET, kind, 17, "", (each, port)) for each in [found[0], *found]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)  # uvloop asks the C library
    resolved = await addresses(ServerAddress("many.internal", 8443))
    assert resolved == tuple((each, 8443) for each in found[:MAX_ADDRESSES])
