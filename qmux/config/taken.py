"""Which listening addresses are taken: two binds that overlap cannot both get the users of an address."""

from __future__ import annotations

from typing import NamedTuple

from qmux.config.scanner import KeyPath
from qmux.config.schema import ListenAddress

_EVERY = {4: "0.0.0.0", 6: "::"}


class Taken(NamedTuple):
    """A bind, and the path of the key that says it."""

    path: KeyPath
    bind: ListenAddress


class TakenAddresses:
    """Binds one after another: each either overlaps an earlier one or takes its addresses. IPv6 is never IPv4 too."""

    def __init__(self) -> None:
        self._by_address: dict[tuple[int, str], Taken] = {}
        self._by_family: dict[tuple[int, int], Taken] = {}  # the first of a port, for a bind of every address

    def take(self, path: KeyPath, bind: ListenAddress) -> Taken | None:
        """The earlier bind that ``bind`` overlaps; None where there is none, and then it counts from now on."""
        addresses = [(6 if ":" in host else 4, host) for host in ([bind.host] if bind.host else _EVERY.values())]
        for family, host in addresses:
            if (clash := self._clash(family, host, bind.port)) is not None:
                return clash
        taken = Taken(path, bind)
        for family, host in addresses:
            self._by_address[bind.port, host] = taken
            self._by_family.setdefault((bind.port, family), taken)
        return None

    def _clash(self, family: int, host: str, port: int) -> Taken | None:
        if host == _EVERY[family]:
            return self._by_family.get((port, family))
        return self._by_address.get((port, host)) or self._by_address.get((port, _EVERY[family]))
