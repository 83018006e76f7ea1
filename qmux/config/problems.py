"""The problems of a configuration, each with its place: collected while it is read, reported together."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, NamedTuple

from qmux.config.scanner import KeyPath
from qmux.errors import ConfigError

MAX_SHOWN_CHARACTERS = 80
"""A longer value is cut in a message: its line says where the rest is."""

MAX_TEXT_CHARACTERS = 200

MAX_SHOWN_PROBLEMS = 100
"""A file that is no configuration of ours at all must not fill a terminal."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Place(NamedTuple):
    """A line of a file; ``order`` is the file's place among those of a directory."""

    order: int
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problems:
    """Collects what is wrong. Lines come out ordered by file and line."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, text: str) -> None:
        """One problem at ``place``."""
        self._found.append((place, text))

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> list[str]:
        """``FILE:LINE: text`` in order, each once."""
        ordered = sorted(self._found, key=lambda found: (found[0].order, found[0].line))
        return list(dict.fromkeys(f"{place}: {text}" for place, text in ordered))

    def raise_any(self, source: str) -> None:
        """Raise ConfigError with every problem, if there is one."""
        if not self._found:
            return
        lines = self.lines()
        left_out = len(lines) - MAX_SHOWN_PROBLEMS
        if left_out > 0:
            lines = [*lines[:MAX_SHOWN_PROBLEMS], f"{source}: {left_out} more problems were left out"]
        raise ConfigError(lines, source)


def key_name(path: KeyPath) -> str:
    """A path as a TOML file writes it: ``services.web.bind``, ``services."a.b".bind``; indexes are left out."""
    return ".".join(quoted_name(part) for part in path if isinstance(part, str))


def quoted_name(name: str) -> str:
    """A key, in quotes where TOML needs them."""
    return name if _BARE.fullmatch(name) else shown(name)


def shown(value: Any) -> str:
    """A value as TOML writes it, on one line, cut where it is long."""
    text = _toml(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 1]}…"


def printable(text: str) -> str:
    """``text`` without characters that could move a terminal's cursor, cut where it is long."""
    cut = text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[: MAX_TEXT_CHARACTERS - 1]}…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(element) for element in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{quoted_name(key)} = {_toml(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
