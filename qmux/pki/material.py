"""What a daemon proves itself with: certificate material and shared secrets, as they pass between processes."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["server", "client"]
"""Which end of the tunnel a daemon is, and so what its certificate must be for."""


class Material(msgspec.Struct, frozen=True):
    """Certificate material as PEM; read by the supervisor, never by a worker. ``key`` must not be logged."""

    chain: bytes
    key: bytes
    ca: bytes

    def __repr__(self) -> str:
        return "Material(MASKED)"


class Keys(msgspec.Struct, frozen=True):
    """Secrets that all workers of a server share (32 bytes each)."""

    stateless_reset: bytes
    retry: bytes
    flow: bytes

    def __repr__(self) -> str:
        return "Keys(MASKED)"
