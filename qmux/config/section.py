"""One table of the document, read key by key: each method gives the typed value, the default, or records a problem."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

import msgspec

from qmux.config.addresses import AddressError
from qmux.config.document import Document
from qmux.config.keys import Key, read_by_rule
from qmux.config.problems import key_name, quoted_name, shown
from qmux.config.scanner import KeyPath
from qmux.config.units import UnitError, format_duration, format_size, parse_duration, parse_size

T = TypeVar("T")

MAX_LIST = 1024
"""Elements of a list (networks, binds): more is a mistake or another tool's job."""


class Names(NamedTuple):
    """The keys of a table: ``known`` ones, those of a ``later`` version, and those of the ``other_end``."""

    known: Collection[str]
    later: Collection[str] = ()
    other_end: Collection[str] = ()
    other_end_is: str = ""


class Section:
    """The table at ``path``; where it is missing or no table, every key has its default.

    ``defaults``: a table whose values stand in for keys that this one does not set (``[defaults]`` for a service).
    """

    def __init__(self, document: Document, path: KeyPath, defaults: Section | None = None) -> None:
        self._document = document
        self.path = path
        self._defaults = defaults
        self.exists = True
        try:
            found = document.value(path)
        except (KeyError, TypeError):
            found, self.exists = {}, False
        if not isinstance(found, dict):
            what = "write it once" if isinstance(found, list) else "not a table; write"
            document.add_name(path, f"{what} as [{key_name(path)}]")
            found, self.exists = {}, False
        self.table: dict[str, Any] = found

    def check_names(self, names: Names) -> None:
        """Record every key that this table does not have."""
        for key in self.table:
            if key not in names.known:
                self._document.add_name((*self.path, key), self._why_unknown(key, names))

    def _why_unknown(self, key: str, names: Names) -> str:
        if key in names.later:
            return "not available in this version; remove it"
        if key in names.other_end:
            what = "key" if self.path else "table"
            return f"a {what} of the {names.other_end_is}; it is set on that side only: remove it here"
        if isinstance(self.table[key], dict) and len(self.path) == 2 and self.path[0] == "services":
            name = shown(f"{self.path[1]}.{key}")
            return f"unknown table; a service's name with a dot needs quotes: [services.{name}]"
        if self.path:
            return f"unknown key; {suggestion(key, names.known, 'the keys here are')}"
        if not isinstance(self.table[key], dict | list):
            return "a key outside a table; write it below the table that it belongs to, as in [server]"
        return f"unknown table; {suggestion(key, names.known, 'the tables are')}"

    def origin(self, key: str) -> KeyPath:
        """The path where ``key`` is set: in this table, or in the defaults."""
        if key not in self.table and self._defaults is not None and key in self._defaults.table:
            return (*self._defaults.path, key)
        return (*self.path, key)

    def has(self, key: str) -> bool:
        """Whether ``key`` is set here or in the defaults."""
        return key in self.table or (self._defaults is not None and key in self._defaults.table)

    def has_tables(self) -> bool:
        """Whether there are tables in this one: none of ours has any, so a name was cut at its dot."""
        return any(isinstance(value, dict) for value in self.table.values())

    def add(self, key: str, text: str) -> None:
        """Record a problem with the value of ``key``."""
        self._document.add(self.origin(key), text)

    def add_missing(self, key: str, text: str) -> None:
        """Record that ``key`` is not there."""
        self._document.add_name((*self.path, key), text)

    def text(self, key: str, default: str = "") -> str:
        """A string that is not empty and has no control characters."""
        if not self.has(key):
            return default
        value = self._get(key, default)
        if not isinstance(value, str):
            self.add(key, 'not a string; write it in quotes, as in "text"')
        elif not value or not value.isprintable():
            self.add(key, "empty; remove the key, or write a value" if not value else "has control characters")
        else:
            return value
        return default

    def flag(self, key: str, default: bool) -> bool:
        """``true`` or ``false``."""
        value = self._get(key, default)
        if isinstance(value, bool):
            return value
        self.add(key, "neither true nor false; write one of them, without quotes")
        return default

    def choice(self, key: str, default: T, choices: Collection[T], later: Collection[str] = ()) -> T:
        """One of ``choices``."""
        value = self._get(key, default)
        if value in choices:
            return next(choice for choice in choices if choice == value)
        if value in later:
            self.add(key, f"not available in this version; choose {_or(choices)}")
        else:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
            self.add(key, f"not one of {_or(choices)}" + (f'; did you mean "{near[0]}"?' if near else ""))
        return default

    def number(self, key: str, default: T, low: int, high: int, words: dict[str, T] | None = None) -> int | T:
        """A whole number from ``low`` to ``high``, or one of ``words``, such as "auto"."""
        words = words or {}
        if not self.has(key):
            return default
        value = self._get(key, default)
        if isinstance(value, str) and value in words:
            return words[value]
        or_word = "".join(f', or "{word}"' for word in words)
        if isinstance(value, str) and value.strip().isdecimal() and value.isascii():
            self.add(key, f"a number stands without quotes; did you mean {int(value)}?")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.add(key, f"not a whole number; write one from {low} to {high}{or_word}")
        elif not low <= value <= high:
            self.add(key, f"out of range; write a number from {low} to {high}{or_word}")
        else:
            return value
        return default

    def duration(self, key: str, default_s: float, low_s: float, high_s: float) -> float:
        """A duration in seconds, within its range."""
        seconds = self._duration(key, low_s, high_s, "")
        return default_s if seconds is None else seconds

    def duration_or_off(self, key: str, low_s: float, high_s: float) -> float | None:
        """A duration in seconds; None where it is "off", which is the default."""
        if self._get(key, "off") == "off":
            return None
        return self._duration(key, low_s, high_s, ', or "off"')

    def read(self, struct: type[msgspec.Struct], **defaults: Any) -> dict[str, Any]:
        """What the keys of this table say that their rules in the schema can read, by the fields of ``struct``.

        ``defaults``: those that are not the schema's.
        """
        return {key.field: self._read(key, defaults.get(key.field, key.default)) for key in read_by_rule(struct)}

    def _read(self, key: Key, default: Any) -> Any:
        if key.kind == "flag":
            return self.flag(key.name, default)
        if key.kind == "choice":
            return self.choice(key.name, default, key.choices, key.later)
        assert key.limits is not None, "every other kind has them"
        low, high = key.limits
        if key.kind == "duration":
            if key.word:
                return self.duration_or_off(key.name, low, high)
            return self.duration(key.name, default, low, high)
        if key.kind == "size":
            return self.size(key.name, default, int(low), int(high))
        words: dict[str, Any] = {key.word: None} if key.word else {}
        return self.number(key.name, default, int(low), int(high), words)

    def _duration(self, key: str, low_s: float, high_s: float, or_off: str) -> float | None:
        value = self._get(key, None)
        if value is None:
            return None
        try:
            seconds = parse_duration(value)
        except UnitError as error:
            self.add(key, str(error))
            return None
        if not low_s <= seconds <= high_s:
            span = f"{format_duration(low_s)} to {format_duration(high_s)}"
            self.add(key, f"out of range; write a duration from {span}{or_off}")
            return None
        return seconds

    def size(self, key: str, default_bytes: int, low_bytes: int, high_bytes: int) -> int:
        """A size in bytes, within its range."""
        if not self.has(key):
            return default_bytes
        try:
            size = parse_size(self._get(key, None))
        except UnitError as error:
            self.add(key, str(error))
            return default_bytes
        if not low_bytes <= size <= high_bytes:
            self.add(key, f"out of range; write a size from {format_size(low_bytes)} to {format_size(high_bytes)}")
            return default_bytes
        return size

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """A string read by ``parse``; None where it is missing or wrong. ``parse`` may raise AddressError."""
        value = self._get(key, None)
        return None if value is None else self._parse(self.origin(key), value, parse)

    def each(self, key: str, parse: Callable[[str], T]) -> tuple[tuple[KeyPath, T], ...]:
        """A string or a list of strings, each read by ``parse``, with the path where it stands."""
        value = self._get(key, None)
        if value is None:
            return ()
        path = self.origin(key)
        if not isinstance(value, list):
            one = self._parse(path, value, parse)
            return () if one is None else ((path, one),)
        if not value:
            self.add(key, "an empty list; remove the key, or write a value")
        if len(value) > MAX_LIST:
            self.add(key, f"a list of {len(value)}; at most {MAX_LIST}")
            return ()
        parsed = [((*path, index), self._parse((*path, index), item, parse)) for index, item in enumerate(value)]
        return tuple((where, item) for where, item in parsed if item is not None)

    def _parse(self, path: KeyPath, value: object, parse: Callable[[str], T]) -> T | None:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        try:
            if isinstance(value, str):
                return parse(value)
            if is_number:
                parse(str(value))  # a bare port: the parser says what to write instead
        except AddressError as error:
            self._document.add(path, str(error))
            return None
        self._document.add(path, 'not a string; write it in quotes, as in "text"')
        return None

    def _get(self, key: str, default: T) -> Any | T:
        if key in self.table:
            return self.table[key]
        if self._defaults is not None:
            return self._defaults.table.get(key, default)
        return default


def suggestion(name: str, known: Collection[str], introduction: str) -> str:
    """``did you mean "balance"?``, or the names that there are."""
    near = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"{introduction} {', '.join(sorted(quoted_name(one) for one in known))}"


def _or(choices: Collection[Any]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)
