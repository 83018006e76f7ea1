"""Which listening addresses are taken: two binds of one protocol that overlap cannot both get what comes there."""

from __future__ import annotations

from typing import NamedTuple

from qmux.config.scanner import KeyPath
from qmux.config.schema import Bind, Protocol

_EVERY = {4: "0.0.0.0", 6: "::"}


class Taken(NamedTuple):
    """A bind, and the path of the key that says it."""

    path: KeyPath
    bind: Bind


class TakenAddresses:
    """Binds one after another: each either overlaps an earlier one or takes its addresses.

    IPv6 is never IPv4 too, and UDP has ports of its own, whatever comes to them.
    """

    def __init__(self) -> None:
        self._by_address: dict[tuple[Protocol, int, str], Taken] = {}
        self._by_family: dict[tuple[Protocol, int, int], Taken] = {}  # the first of a port, for one of every address

    def take(self, path: KeyPath, bind: Bind) -> Taken | None:
        """The earlier bind that ``bind`` overlaps; None where there is none, and then it counts from now on."""
        named = bind.address.host
        addresses = [(6 if ":" in host else 4, host) for host in ([named] if named else _EVERY.values())]
        for family, host in addresses:
            if (clash := self._clash(bind.protocol, family, host, bind.port)) is not None:
                return clash
        taken = Taken(path, bind)
        for family, host in addresses:
            self._by_address[bind.protocol, bind.port, host] = taken
            self._by_family.setdefault((bind.protocol, bind.port, family), taken)
        return None

    def _clash(self, protocol: Protocol, family: int, host: str, port: int) -> Taken | None:
        if host == _EVERY[family]:
            return self._by_family.get((protocol, port, family))
        found = self._by_address.get((protocol, port, host))
        return found or self._by_address.get((protocol, port, _EVERY[family]))
