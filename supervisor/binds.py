"""The listening addresses of a server: which its configuration wants, which are open, and who gets which share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from qmux.config.schema import Config, ListenAddress, ServerConfig
from qmux.errors import StartError
from qmux.messages import AddBind
from supervisor.sockets import BindKind, Group, open_groups, warn_of_small_buffer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """An address as the configuration writes it. ``service``: whose users come there ("" for QUIC)."""

    kind: BindKind
    bind: ListenAddress
    service: str
    config_key: str


@dataclass
class Opened:
    """A wanted address and its socket groups (two where it names no host)."""

    wanted: Wanted
    groups: list[Group]

    def messages(self, number: int) -> Iterator[tuple[AddBind, int]]:
        """What gives a worker its share: socket ``number`` (QUIC: its slot, traffic: its index) of each group."""
        for group in self.groups:
            message = AddBind(
                key=self.key(group, number), kind=group.kind, address=group.address, service=self.wanted.service
            )
            yield message, group.sockets[number].fileno()

    def keys(self, number: int) -> list[str]:
        """The keys of share ``number``, as RemoveBind names them."""
        return [self.key(group, number) for group in self.groups]

    def key(self, group: Group, number: int) -> str:
        """What both ends call one socket."""
        return "|".join(filter(None, (group.kind, self.wanted.service, group.address, str(number))))

    def close(self) -> None:
        """Close our descriptors."""
        for group in self.groups:
            group.close()


@dataclass
class Difference:
    """How to get from the open addresses to those that another configuration wants. ``passed``: to another service."""

    opened: list[Opened] = field(default_factory=list)
    removed: list[Opened] = field(default_factory=list)
    passed: list[tuple[Opened, Wanted]] = field(default_factory=list)


class Binds:
    """All open addresses of the daemon. ``count`` workers share each."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._opened: dict[tuple[BindKind, ListenAddress], Opened] = {}

    def __iter__(self) -> Iterator[Opened]:
        return iter(self._opened.values())

    def of_kind(self, kind: BindKind) -> list[Opened]:
        """The open addresses of one kind."""
        return [opened for opened in self if opened.wanted.kind == kind]

    def addresses(self) -> dict[str, list[str]]:
        """What listens, for status: ``quic`` and ``traffic:SERVICE``, each with the addresses of all its binds."""
        found: dict[str, list[str]] = {}
        for opened in self:
            place = f"{opened.wanted.kind}:{opened.wanted.service}".rstrip(":")
            found.setdefault(place, []).extend(group.address for group in opened.groups)
        return found

    def prepare(self, config: Config) -> Difference:
        """Open what ``config`` wants in addition. Changes nothing that is in use; ``commit`` or ``discard`` follows.

        Raises StartError where an address cannot be had.
        """
        wanted = {(want.kind, want.bind): want for want in wanted_binds(config)}
        difference = Difference(removed=[opened for place, opened in self._opened.items() if place not in wanted])
        leaving = {(opened.wanted.kind, opened.wanted.bind.port) for opened in difference.removed}
        try:
            for place, want in wanted.items():
                if (opened := self._opened.get(place)) is None:
                    difference.opened.append(self._open(want, shared=(want.kind, want.bind.port) in leaving))
                elif opened.wanted.service != want.service:
                    difference.passed.append((opened, want))
        except StartError:
            self.discard(difference)
            raise
        return difference

    def commit(self, difference: Difference) -> None:
        """The new addresses are ours from now on; those removed stay open until ``close`` is called on them."""
        for opened in difference.removed:
            del self._opened[opened.wanted.kind, opened.wanted.bind]
        for opened, want in difference.passed:
            opened.wanted = want
        for opened in difference.opened:
            self._opened[opened.wanted.kind, opened.wanted.bind] = opened
            for group in opened.groups:
                log.info(
                    f"listening on {group.address}",
                    extra={"for": opened.wanted.service or "clients (QUIC)", "sockets": len(group.sockets)},
                )

    def discard(self, difference: Difference) -> None:
        """Close what ``prepare`` opened."""
        for opened in difference.opened:
            opened.close()

    def close(self) -> None:
        """Close everything."""
        for opened in self:
            opened.close()
        self._opened.clear()

    def _open(self, want: Wanted, shared: bool) -> Opened:
        groups = open_groups(want.kind, want.bind, self._count, want.config_key, shared)
        if want.kind == "quic":
            warn_of_small_buffer(groups[0])
        return Opened(want, groups)


def wanted_binds(config: Config) -> list[Wanted]:
    """Every address that ``config`` names, once. A client has none: it opens its sockets itself."""
    if not isinstance(config, ServerConfig):
        return []
    quic = [Wanted("quic", bind, "", _quic_key(config, bind)) for bind in config.quic_binds()]
    traffic = [
        Wanted("traffic", bind, service.name, f"services.{service.name}.bind")
        for service in config.services.values()
        for bind in service.bind
    ]
    return quic + traffic


def _quic_key(config: ServerConfig, bind: ListenAddress) -> str:
    if bind in config.quic.bind:
        return "quic.bind"
    return next(f"services.{name}.quic_bind" for name, service in config.services.items() if bind in service.quic_bind)
