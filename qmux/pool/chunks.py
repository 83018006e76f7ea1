"""Rows in portions that fit on the bus: a larger message would be dropped for ever, and with it the rows in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qmux.pool.rows import Row

ROWS_PER_CHUNK = 256
"""Some 40 KiB of usual rows: short to encode, so that no relay waits for it."""

BYTES_PER_CHUNK = 256 * 1024
"""A row grows with what its client offers, up to some 36 KiB (``qmux.protocol.values``); the bus takes 1 MiB."""

_FIXED_BYTES = 160
"""The numbers of a row, its session and the heads of its fields, rounded up."""

_OFFER_BYTES = 10
"""An offer without its name."""


def size_of(row: Row) -> int:
    """At least the bytes of ``row`` as msgpack: UTF-8 takes up to four for a character, names are ASCII."""
    texts = len(row.tenant) + len(row.principal) + len(row.instance) + len(row.address)
    return _FIXED_BYTES + 4 * texts + sum(len(offer.service) + _OFFER_BYTES for offer in row.offers)


def chunks(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    """``rows`` in order, in portions of at least one row that keep both limits."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        row_size = size_of(row)
        if chunk and (len(chunk) >= ROWS_PER_CHUNK or size + row_size > BYTES_PER_CHUNK):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row_size
    if chunk:
        yield chunk
