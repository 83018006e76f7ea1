"""What the schema says of each key: its name in the file, its default, its limits, and whether a reload applies it.

A field of the schema is the one place for these. ``queue_timeout_s`` is the key ``queue_timeout``, written as a
duration; its default is the field's, its limits and what a reload makes of it stand in the field's annotation. Parser,
reload and the tests of the documentation ask here.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec


class Limits(NamedTuple):
    """The smallest and the largest value that the file may have, in the field's unit."""

    low: float
    high: float


class OrWord(NamedTuple):
    """A word that the file may have instead of a value; the field is None then."""

    word: str


class Later(NamedTuple):
    """Choices of a later version: refused, with that said."""

    choices: tuple[str, ...]


class NeedsRestart(NamedTuple):
    """A reload keeps the old value, and says why. A key without this is applied to running workers."""

    why: str


class NotInFile(NamedTuple):
    """The field is no key of its table: a table's name, or what the command line says."""


class Key(NamedTuple):
    """One key of a table. ``kind``: how it is written; "other" is read by hand."""

    field: str
    kind: Literal["duration", "size", "number", "flag", "choice", "other"]
    default: Any
    limits: Limits | None = None
    word: str = ""
    choices: tuple[Any, ...] = ()
    later: tuple[str, ...] = ()
    needs_restart: str = ""

    @property
    def name(self) -> str:
        """As the file has it."""
        return self.field.removesuffix("_s").removesuffix("_bytes")


@functools.cache
def keys_of(struct: type[msgspec.Struct]) -> dict[str, Key]:
    """The keys of a table by their fields, in the order of the schema."""
    hints = get_type_hints(struct, include_extras=True)
    return {
        field.name: _key(field, hints[field.name])
        for field in msgspec.structs.fields(struct)
        if not any(isinstance(note, NotInFile) for note in _notes(hints[field.name]))
    }


def names_of(struct: type[msgspec.Struct], *left_out: str) -> tuple[str, ...]:
    """The names of the keys of a table, but for some fields."""
    return tuple(key.name for field, key in keys_of(struct).items() if field not in left_out)


def read_by_rule(struct: type[msgspec.Struct]) -> Iterator[Key]:
    """Those keys that can be read by their kind alone."""
    return (key for key in keys_of(struct).values() if key.kind != "other")


def _key(field: msgspec.structs.FieldInfo, hint: Any) -> Key:
    notes = _notes(hint)
    plain = get_args(hint)[0] if notes else hint
    by_type = {type(note): note for note in notes}
    kind, choices = _kind(field.name, plain, Limits in by_type)
    return Key(
        field=field.name,
        kind=kind,
        default=None if field.default is msgspec.NODEFAULT else field.default,
        limits=by_type.get(Limits),
        word=by_type[OrWord].word if OrWord in by_type else "",
        choices=choices,
        later=by_type[Later].choices if Later in by_type else (),
        needs_restart=by_type[NeedsRestart].why if NeedsRestart in by_type else "",
    )


def _notes(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _kind(field: str, hint: Any, has_limits: bool) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is Literal:
        return "choice", get_args(hint)
    if hint is bool:
        return "flag", ()
    if not has_limits:
        return "other", ()
    if hint is float and field.endswith("_s"):
        return "duration", ()
    return ("size" if field.endswith("_bytes") else "number"), ()
