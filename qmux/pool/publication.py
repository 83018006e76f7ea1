"""What one worker publishes of its rows: what changed since the last time, and all of them again and again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from qmux.pool.chunks import chunks
from qmux.pool.rows import Delta, Pass, Row

ROWS_PER_PASS = 4096
"""Rows published in one second at most; with more, a pass takes longer."""

GONE_PER_DELTA = 8192
"""Keys in one delta at most: 72 KiB."""

END_OF_KEYS = 1 << 62


class Publication:
    """Remembers which rows, by their keys, are still to be published, and how far the pass in progress is."""

    def __init__(self, slot: int, epoch: int) -> None:
        self._slot = slot
        self._epoch = epoch
        self._changed: dict[int, None] = {}  # a set in order: who changed first is published first
        self._gone: dict[int, None] = {}
        self._active_changed = False
        self._pass_from = 0

    def changed(self, key: int) -> None:
        """This row is new, or another than it was."""
        self._changed[key] = None

    def removed(self, key: int) -> None:
        """This row is no more."""
        self._changed.pop(key, None)
        self._gone[key] = None

    def active_changed(self) -> None:
        """The counts of users are others than they were."""
        self._active_changed = True

    def take_delta(self, rows: Mapping[int, Row], active: Mapping[str, int]) -> Delta | None:
        """What changed, as one message; with more than fits, again until None."""
        if not (self._changed or self._gone or self._active_changed):
            return None
        changed = next(chunks(rows[key] for key in self._changed), ())
        gone = tuple(itertools.islice(self._gone, GONE_PER_DELTA))
        for row in changed:
            del self._changed[row.key]
        for key in gone:
            del self._gone[key]
        self._active_changed = False
        return Delta(self._slot, self._epoch, tuple(changed), gone, dict(active))

    def next_passes(self, rows: Mapping[int, Row], active: Mapping[str, int]) -> list[Pass]:
        """This second's share of all rows, as chunks of key ranges without a gap between them; to be sent at once."""
        keys = sorted(key for key in rows if key >= self._pass_from)
        parts = list(chunks(rows[key] for key in keys[:ROWS_PER_PASS])) or [()]
        end = keys[ROWS_PER_PASS] if len(keys) > ROWS_PER_PASS else END_OF_KEYS
        bounds = [self._pass_from, *(part[0].key for part in parts[1:]), end]
        self._pass_from = 0 if end == END_OF_KEYS else end
        counts = dict(active)
        return [
            Pass(self._slot, self._epoch, first, last, tuple(part), counts)
            for part, (first, last) in zip(parts, itertools.pairwise(bounds), strict=True)
        ]
