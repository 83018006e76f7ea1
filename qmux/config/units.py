"""Durations and sizes: strings with units, as a user writes them, to seconds and bytes and back.

A bare number is refused with the likely correction. Parsers return the value, or raise UnitError with what is wrong
and what to write.
"""

from __future__ import annotations

import math
import re

DURATIONS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
SIZES_BYTES = {
    "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip

_OTHER_NAMES = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d", "msec": "ms", "millis": "ms", "milliseconds": "ms",
    "b": "B", "byte": "B", "bytes": "B", "k": "KiB", "kib": "KiB", "ki": "KiB", "kb": "kB",
    "m": "MiB", "mib": "MiB", "mi": "MiB", "mb": "MB", "g": "GiB", "gib": "GiB", "gi": "GiB", "gb": "GB",
}  # fmt: skip
"""What people write in lower case instead of a unit. ``m`` is a minute among durations: there it is a unit."""

_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_PART = re.compile(rf"({_NUMBER})\s*([A-Za-zµ/]*)")


class UnitError(ValueError):
    """A duration or size that cannot be read: what is wrong and what to write."""


def parse_duration(value: object) -> float:
    """Seconds of ``"30s"``, ``"500ms"``, ``"1h30m"``."""
    return _parse(value, "duration", DURATIONS_S, "s", "30s")


def parse_size(value: object) -> int:
    """Bytes of ``"16MiB"``, ``"1500B"``."""
    amount = _parse(value, "size", SIZES_BYTES, "B", "16MiB")
    if not amount.is_integer():
        raise UnitError("not a whole number of bytes")
    return int(amount)


def format_duration(seconds: float) -> str:
    """The shortest string that ``parse_duration`` reads as ``seconds``: 90.0 is "90s", 300.0 is "5m"."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms"


def format_size(size_bytes: int) -> str:
    """The shortest string that ``parse_size`` reads as ``size_bytes``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZES_BYTES[unit] == 0:
            return f"{size_bytes // SIZES_BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _parse(
    value: object, kind: str, units: dict[str, float] | dict[str, int], default_unit: str, example: str
) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnitError(f'a {kind} is a string with a unit, as in "{example}"')
    if isinstance(value, int | float):
        raise UnitError(_bare_number(value, kind, default_unit, example))
    if not value:
        raise UnitError(f'a {kind} is a number and a unit, as in "{example}"')
    if re.fullmatch(_NUMBER, value):
        raise UnitError(f'a {kind} needs a unit; did you mean "{value}{default_unit}"?')
    parts = _PART.findall(value)
    if not parts or _PART.sub("", value).strip() or any(not unit for _, unit in parts):
        raise UnitError(f'not a {kind}; write a number and a unit ({_names(units)}), as in "{example}"')
    if wrong := next((unit for _, unit in parts if unit not in units), None):
        raise UnitError(f'a {kind} has no unit "{wrong}" ({_names(units)}){_correction(parts, units)}')
    if value != (joined := "".join(number + unit for number, unit in parts)):
        raise UnitError(f'a {kind} has no spaces; did you mean "{joined}"?')
    return math.fsum(float(number) * units[unit] for number, unit in parts)


def _bare_number(value: float, kind: str, default_unit: str, example: str) -> str:
    if not math.isfinite(value) or value < 0:
        return f'a {kind} is a string with a unit and not negative, as in "{example}"'
    if isinstance(value, float) and not value.is_integer() and default_unit == "s":
        return f'a duration needs a unit; did you mean "{format_duration(value)}"?'
    text = format_size(int(value)) if default_unit == "B" else f"{int(value)}{default_unit}"
    return f'a {kind} needs a unit; did you mean "{text}"?'


def _names(units: dict[str, float] | dict[str, int]) -> str:
    return ", ".join(unit for unit in units if unit != "KB")  # read, but kB is how the SI writes it


def _correction(parts: list[tuple[str, str]], units: dict[str, float] | dict[str, int]) -> str:
    fixed = []
    for number, unit in parts:
        candidates = (unit, _OTHER_NAMES.get(unit.lower(), ""), unit.lower())
        fixed.append((number, next((candidate for candidate in candidates if candidate in units), "")))
    if not all(unit for _, unit in fixed):
        return ""
    return f'; did you mean "{"".join(number + unit for number, unit in fixed)}"?'
