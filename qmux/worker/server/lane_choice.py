"""Which workers a session shall be connected to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def lanes_for(session: bytes, active: Sequence[int], limit: int) -> tuple[int, ...]:
    """The slots that ``session`` connects to: all that are active, or ``limit`` of them by rendezvous hash, so that
    a change of one slot moves only the sessions that were there.
    """
    if len(active) <= limit:
        return tuple(sorted(active))

    def score(slot: int) -> bytes:
        return hashlib.blake2b(session + slot.to_bytes(2, "big"), digest_size=8).digest()

    return tuple(sorted(sorted(active, key=score)[:limit]))
