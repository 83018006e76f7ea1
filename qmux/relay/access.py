"""Who may connect to a service: ``allow`` and ``deny``, lists of CIDRs."""

from __future__ import annotations

import ipaddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AccessList:
    """``deny`` wins over ``allow``; an empty ``allow`` lets everybody else in."""

    def __init__(self, allow: tuple[str, ...], deny: tuple[str, ...]) -> None:
        self._allow = [ipaddress.ip_network(cidr, strict=False) for cidr in allow]
        self._deny = [ipaddress.ip_network(cidr, strict=False) for cidr in deny]

    def permits(self, host: str) -> bool:
        """Whether the user at this numeric address may connect."""
        if not self._allow and not self._deny:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        if _contains(self._deny, address):
            return False
        return not self._allow or _contains(self._allow, address)


def _contains(networks: list[Network], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address.version == network.version and address in network for network in networks)
