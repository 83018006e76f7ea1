"""Retry tokens (RFC 9000 §8.1.2): stateless proof that an address is real, valid at every worker.

aioquic's own handler has a key of its own in each process and takes tokens from the future; this one shares its key and
uses the wall clock, so that any active worker validates what another issued.
"""

from __future__ import annotations

import ipaddress
import os
import struct
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LIFETIME_S = 30.0
"""A client answers a Retry at once (RFC 9000 §8.1.4 asks for a short time)."""

_NONCE_BYTES = 12
_HEAD = struct.Struct("!dHB")


class RetryTokens:
    """Seals and opens tokens under a shared key (at least 32 bytes, of which 16 are used)."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key[:16])

    def issue(self, address: tuple[str, int], original_id: bytes) -> bytes:
        """A token for ``address`` that carries the client's first destination ID."""
        plain = _HEAD.pack(time.time(), address[1], len(original_id)) + original_id + _packed(address[0])
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, None)

    def open(self, token: bytes, address: tuple[str, int]) -> bytes | None:
        """The original destination ID, or None where the token is not ours, not for this address, or too old."""
        try:
            plain = self._aead.decrypt(token[:_NONCE_BYTES], token[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            return None
        issued_at, port, id_bytes = _HEAD.unpack_from(plain)
        original_id = plain[_HEAD.size : _HEAD.size + id_bytes]
        fresh = -LIFETIME_S < time.time() - issued_at < LIFETIME_S
        same_address = (port, plain[_HEAD.size + id_bytes :]) == (address[1], _packed(address[0]))
        return original_id if fresh and same_address else None


def _packed(host: str) -> bytes:
    return ipaddress.ip_address(host.partition("%")[0]).packed
