"""Which line sets which key: a scanner for TOML that interprets no value.

``tomli`` gives the values but not their lines. This reads the same text a second time, only to find where keys, tables
and elements of arrays stand. It relies on ``tomli`` having accepted the text before: what it meets is valid TOML.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import tomli

KeyPath = tuple[str | int, ...]
"""Where a value stands: table names and keys, and the index for an element of an array."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRINGS = (
    # The longest delimiter first. In a multi-line string up to two quotes may stand before the closing three.
    ('"""', re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{0,2})', re.DOTALL)),
    ("'''", re.compile(r"'''(?:[^']|'(?!''))*'''(?:'{0,2})", re.DOTALL)),
    ('"', re.compile(r'"(?:[^"\\\n]|\\.)*"')),
    ("'", re.compile(r"'[^'\n]*'")),
)


def scan(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every table, key and array element of ``text``, which ``tomli`` has accepted."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._tables_of_array: dict[KeyPath, int] = {}
        self._table: KeyPath = ()

    def scan(self) -> dict[KeyPath, int]:
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                self._header()
            else:
                self._pair(self._table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> None:
        """``[a.b]`` opens a table, ``[[a.b]]`` appends one to an array."""
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._at += 2 if is_array else 1
        path = self._through_arrays(keys[:-1], line)
        path += (keys[-1],)
        if is_array:
            self._lines.setdefault(path, line)
            path += (self._tables_of_array.get(path, 0),)
            self._tables_of_array[path[:-1]] = int(path[-1]) + 1
        self._lines[path] = line
        self._table = path

    def _through_arrays(self, keys: list[str], line: int) -> KeyPath:
        """The path of a table that a header names on the way: in an array of tables it is the last one."""
        path: KeyPath = ()
        for key in keys:
            path += (key,)
            self._lines.setdefault(path, line)
            if path in self._tables_of_array:
                path += (self._tables_of_array[path] - 1,)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path += (key,)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        """``a."b c".d`` with the space around each; stops at what follows the last."""
        keys = []
        while True:
            self._skip(_SPACE)
            keys.append(self._key())
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _key(self) -> str:
        if self._text[self._at] in "\"'":
            quoted = self._string()
            return next(iter(tomli.loads(f"{quoted} = 0")))  # the parser decodes the escapes, not we
        return self._take(_BARE_KEY)

    def _value(self, path: KeyPath) -> None:
        start = self._text[self._at]
        if start in "\"'":
            self._string()
        elif start == "[":
            self._array(path)
        elif start == "{":
            self._inline_table(path)
        else:
            self._take(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        index = 0
        while self._next_item("]"):
            element = (*path, index)
            self._lines[element] = self._line()
            self._value(element)
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        while self._next_item("}"):
            self._pair(path)

    def _next_item(self, end: str) -> bool:
        """Step over the opening bracket or a comma; False after the closing bracket."""
        if self._text[self._at] in "[{,":
            self._at += 1
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            return self._next_item(end)
        if self._text[self._at] == end:
            self._at += 1
            return False
        return True

    def _string(self) -> str:
        return next(self._take(rule) for start, rule in _STRINGS if self._text.startswith(start, self._at))

    def _skip(self, rule: re.Pattern[str]) -> None:
        self._take(rule)

    def _take(self, rule: re.Pattern[str]) -> str:
        match = rule.match(self._text, self._at)
        if match is None:
            raise AssertionError(f"line {self._line()}: the scanner cannot read what the parser accepted")
        self._at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_right(self._newlines, self._at - 1) + 1
