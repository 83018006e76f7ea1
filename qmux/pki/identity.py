"""Who a peer is: what a policy may see of a certificate (docs/architecture.md, "Pool, balancing, bus")."""

from __future__ import annotations

import msgspec

CLIENT_URI = "qmux:client:"
SERVICE_URI = "qmux:service:"
ANY_SERVICE = "*"


class Identity(msgspec.Struct, frozen=True):
    """An authenticated client. ``services``: those that it may serve, ``*`` for all; ``not_after``: seconds since the
    epoch; ``fingerprint``: SHA-256 of the leaf certificate, hex.
    """

    principal: str
    services: tuple[str, ...]
    fingerprint: str
    serial: str
    not_after: int
    tenant: str = "default"
    scheme: str = "mtls"

    def may_serve(self, service: str) -> bool:
        """Whether the certificate names this service."""
        return service in self.services or ANY_SERVICE in self.services
