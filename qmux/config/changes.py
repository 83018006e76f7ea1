"""What differs between two configurations, and what a running daemon can take over in place.

A restart is needed for what exists before the workers do: their number, their engine, their QUIC sockets (one for each
worker, steered by slot), their user, their directories. All else is applied to running workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from qmux.config.keys import Key, keys_of
from qmux.config.problems import quoted_name, shown
from qmux.config.schema import Config, ProcessConfig, QuicConfig, ServerConfig, ServiceConfig
from qmux.config.units import format_duration, format_size

How = Literal["in place", "restart"]

ABSENT = "-"
"""Shown where a side has no such key."""

_RESTART_FIELDS = {field: key.needs_restart for field, key in keys_of(ProcessConfig).items() if key.needs_restart}
_QUIC_BINDS = "QUIC sockets are opened when the workers start, one for each"
_ROLE = "a server does not become a client, nor the other way round"


class Change(msgspec.Struct, frozen=True):
    """One key that differs. ``old`` and ``new`` as TOML writes them; ``why``: why a restart is needed, else ""."""

    key: str
    old: str
    new: str
    how: How
    why: str = ""

    def __str__(self) -> str:
        note = f"needs a restart: {self.why}" if self.why else "in place"
        return f"{self.key}: {self.old} → {self.new} ({note})"


def changes(old: Config, new: Config) -> list[Change]:
    """Every key whose value differs, in the order of the new configuration, then those that it lacks."""
    if type(old) is not type(new):
        return [Change("role", _role(old), _role(new), "restart", _ROLE)]
    before, after = dict(_keys(old)), dict(_keys(new))
    sockets_differ = _quic_sockets(old) != _quic_sockets(new)
    found = []
    for key in [*after, *(key for key in before if key not in after)]:
        was, becomes = before.get(key, ABSENT), after.get(key, ABSENT)
        if was != becomes:
            why = _why_restart(key, sockets_differ)
            found.append(Change(key, was, becomes, "restart" if why else "in place", why))
    return found


def merge_in_place(old: Config, new: Config) -> Config:
    """``new``, with what needs a restart kept as it is in ``old``: what a reload gives to running workers."""
    if type(old) is not type(new):
        return old
    kept = {key: getattr(old.process, key) for key in _RESTART_FIELDS}
    merged = msgspec.structs.replace(new, source=old.source, process=msgspec.structs.replace(new.process, **kept))
    if isinstance(merged, ServerConfig) and isinstance(old, ServerConfig):
        return _with_quic_binds(merged, old)
    return merged


def _with_quic_binds(merged: ServerConfig, old: ServerConfig) -> ServerConfig:
    """The open QUIC sockets stay: a service keeps its own, and those of a removed service go to ``[quic] bind``."""
    if _quic_sockets(merged) == _quic_sockets(old):
        return merged
    services: dict[str, ServiceConfig] = {}
    for name, service in merged.services.items():
        before = old.services.get(name)
        services[name] = msgspec.structs.replace(service, quic_bind=before.quic_bind if before else ())
    named = {bind for service in services.values() for bind in service.quic_bind}
    rest = tuple(bind for bind in old.quic_addresses() if bind in old.quic.bind or bind not in named)
    quic: QuicConfig = msgspec.structs.replace(merged.quic, bind=rest)
    return msgspec.structs.replace(merged, quic=quic, services=services)


def _why_restart(key: str, sockets_differ: bool) -> str:
    table, _, name = key.rpartition(".")
    if name == "quic_bind" or key == "quic.bind":
        return _QUIC_BINDS if sockets_differ else ""  # an address that only moves to another table is open already
    return _RESTART_FIELDS.get(name, "") if table in ("server", "client") else ""


def _quic_sockets(config: Config) -> set[Any]:
    return set(config.quic_addresses()) if isinstance(config, ServerConfig) else set()


def _role(config: Config) -> str:
    return "server" if isinstance(config, ServerConfig) else "client"


def _keys(config: Config) -> Iterator[tuple[str, str]]:
    """Every key with its effective value, named as in the file."""
    role = _role(config)
    for field, key in keys_of(type(config)).items():
        value = getattr(config, field)
        if field == "process":
            yield from _table(role, value)
            yield from _table(role, value.tls)
        elif field in ("quic", "log"):
            yield from _table(field, value)
        elif field == "services":
            for name, service in value.items():
                yield from _table(f"services.{quoted_name(name)}", service)
        else:
            yield f"{role}.{key.name}", _written(key, value)


def _table(name: str, struct: msgspec.Struct) -> Iterator[tuple[str, str]]:
    for field, key in keys_of(type(struct)).items():
        if field != "tls":  # named beside the others of its table
            yield f"{name}.{key.name}", _written(key, getattr(struct, field))


def _written(key: Key, value: Any) -> str:
    """A value of the schema as the file has it: ``queue_timeout_s`` 3.0 is ``queue_timeout`` "3s"."""
    if value is None:
        return shown(key.word) if key.word else ABSENT
    if key.kind == "duration":
        return shown(format_duration(value))
    if key.kind == "size":
        return shown(format_size(value))
    if isinstance(value, tuple):
        items = [str(item) for item in value]
        return ABSENT if not items else shown(items[0] if len(items) == 1 else items)
    if isinstance(value, msgspec.Struct):
        return shown(str(value))
    return ABSENT if value == "" else shown(value)
