"""Figures as people read them, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence

_RATES = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
_SPANS = ((86400, "d"), (3600, "h"), (60, "m"))


def rates(first_bit_s: float, second_bit_s: float) -> str:
    """Two rates in the unit of the larger: ``1.20 / 8.40 Gbit/s``."""
    larger = max(first_bit_s, second_bit_s)
    scale, unit = next(((scale, unit) for scale, unit in _RATES if larger >= scale), (1.0, "bit/s"))
    if scale == 1.0:
        return f"{first_bit_s:.0f} / {second_bit_s:.0f} {unit}"
    return f"{first_bit_s / scale:.2f} / {second_bit_s / scale:.2f} {unit}"


def duration(seconds: float) -> str:
    """The two largest units: ``2h 11m``, ``88d``, ``5s``."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for size, unit in _SPANS:
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    if len(parts) < 2 and (left or not parts):
        parts.append(f"{left}s")
    return " ".join(parts[:2])


def memory(size_bytes: int) -> str:
    """``48 MiB``, ``1.2 GiB``."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / 2**20:.0f} MiB"


def cpu_time(seconds: float) -> str:
    """``0.4 s`` below a minute, then as ``duration``: ``2h 11m``."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, two spaces apart."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
