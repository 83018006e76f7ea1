"""TOML files as one document: the values from the parser, the line of each key from the scanner.

A directory is its ``*.toml`` in order of their names, as one document in which each key is set once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from qmux.config.files import ReadError, read_file
from qmux.config.problems import Place, Problems, key_name, printable, shown
from qmux.config.scanner import KeyPath, scan
from qmux.paths import text_of

MAX_FILE_BYTES = 1 << 20
"""A configuration is written by a person: a larger file is some other file."""

MAX_FILES = 256
"""Files of a directory, for the same reason."""

_TYPOGRAPHIC = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"
"""Quotation marks of prose."""

_HINTS = (
    # (what tomli says, what to do)
    (r"Invalid value|Invalid initial character", 'a string needs quotes, as in bind = ":80"'),
    (r"Cannot overwrite|Duplicate|Cannot mutate", "each key is set once: remove one of the two"),
    (r"Cannot declare|Cannot redefine", "each table is opened once: put its keys together"),
    (r"Expected '='", 'a line is a table like [server], a key like bind = ":80", or a comment after #'),
    (r"Expected newline|Illegal character|Unterminated|Unclosed|Expected", "look for a missing quote or bracket"),
)


class Document(NamedTuple):
    """``tree``: tables and values; ``places``: where each key was set; ``source``: as the user named it.

    ``source_path`` is absolute; relative paths in the document are relative to ``base``.
    """

    tree: dict[str, Any]
    places: dict[KeyPath, Place]
    source: str
    source_path: Path
    base: Path
    problems: Problems

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` is set, or the nearest table around it that is written down; else the source's begin."""
        for end in range(len(path), 0, -1):
            if (place := self.places.get(path[:end])) is not None:
                return place
        return next(iter(self.places.values()), Place(0, self.source, 1))._replace(line=1)

    def add(self, path: KeyPath, text: str) -> None:
        """A problem with the value at ``path``, which the line shows."""
        self.problems.add(self.place(path), f"{key_name(path)} = {shown(self.value(path))}: {text}")

    def add_name(self, path: KeyPath, text: str) -> None:
        """A problem with a key, a table or something that is missing: no value is shown."""
        self.problems.add(self.place(path), f"{key_name(path)}: {text}")

    def value(self, path: KeyPath) -> Any:
        """The value at ``path``, which must be there."""
        value: Any = self.tree
        for part in path:
            value = value[part]
        return value


def read_document(source: Path) -> Document:
    """Read and parse the file or directory. Raises ConfigError where it is no TOML or cannot be read."""
    problems = Problems()
    is_directory = os.path.isdir(source)
    files = _files_of(source, problems) if is_directory else [source]
    source_path = Path(os.path.abspath(source))
    base = source_path if is_directory else source_path.parent
    document = Document({}, {}, text_of(source), source_path, base, problems)
    for order, file in enumerate(files):
        _read_file(document, order, file)
    problems.raise_any(document.source)
    return document


def _files_of(directory: Path, problems: Problems) -> list[Path]:
    """The ``*.toml`` of a directory; hidden ones are left out, since editors leave them."""
    place = Place(0, text_of(directory), 0)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
    except OSError as error:
        problems.add(place, f"cannot be listed: {error.strerror}; change its owner or mode")
        return []
    if not names:
        problems.add(place, "has no *.toml file; put one there, or name a file")
    if len(names) > MAX_FILES:
        problems.add(place, f"has {len(names)} *.toml files; at most {MAX_FILES} are read")
        return []
    return [directory / name for name in names]


def _read_file(document: Document, order: int, file: Path) -> None:
    name = text_of(file)
    try:
        text = read_file(file, MAX_FILE_BYTES).decode("utf-8-sig")
        tree = tomli.loads(text)
        lines = scan(text.replace("\r\n", "\n"))
    except ReadError as error:
        hint = "; name another, or write one: qmux init server, or client" if str(error) == "no such file" else ""
        document.problems.add(Place(order, name, 0), f"{error}{hint}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        document.problems.add(Place(order, name, line), "not UTF-8 text; save the file as UTF-8")
    except tomli.TOMLDecodeError as error:
        document.problems.add(*_syntax_problem(error, order, name, text))
    except RecursionError:
        document.problems.add(Place(order, name, 0), "arrays or tables are nested too deep")
    else:
        places = {path: Place(order, name, line) for path, line in lines.items()}
        _merge(document, (), document.tree, tree, places)


def _syntax_problem(error: tomli.TOMLDecodeError, order: int, name: str, text: str) -> tuple[Place, str]:
    said = error.msg[:1].lower() + error.msg[1:]
    written = text.split("\n")[error.lineno - 1].strip() if error.lineno <= text.count("\n") + 1 else ""
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, error.msg)), "correct this line")
    if re.search(f"[{_TYPOGRAPHIC}]", written):
        hint = 'these quotes are typographic ones, as word processors make them; TOML takes straight ones: "'
    where = f"{printable(written)}: " if written else ""
    return Place(order, name, error.lineno), f"{where}not TOML: {printable(said)} at column {error.colno}; {hint}"


def _merge(
    document: Document, path: KeyPath, into: dict[str, Any], new: dict[str, Any], places: dict[KeyPath, Place]
) -> None:
    """Add a file's tables to the document; a key that another file has set is a problem that names both places."""
    for key, value in new.items():
        here = (*path, key)
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(document, here, old, value, places)
        elif key in into:
            first = document.places[here]
            text = f"{key_name(here)} = {shown(value)}: set already in {first}; each key is set once"
            document.problems.add(places[here], text)
        else:
            into[key] = value
            _add_places(document, here, value, places)


def _add_places(document: Document, path: KeyPath, value: Any, places: dict[KeyPath, Place]) -> None:
    document.places[path] = places[path]
    if isinstance(value, dict):
        for key, inner in value.items():
            _add_places(document, (*path, key), inner, places)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _add_places(document, (*path, index), inner, places)
