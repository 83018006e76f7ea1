"""The listening addresses of a server: which its configuration wants, which are open, and who gets which share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from qmux.config.schema import Bind, Config, Purpose, ServerConfig
from qmux.errors import StartError
from qmux.messages import AddBind
from supervisor.sockets import Group, open_groups, warn_of_small_buffer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A bind as the configuration writes it. ``service``: its user connections come there ("" for QUIC)."""

    bind: Bind
    service: str
    config_key: str


@dataclass
class Opened:
    """A wanted address and its socket groups (two where it names no host)."""

    wanted: Wanted
    groups: list[Group]

    def messages(self, number: int) -> Iterator[tuple[AddBind, int]]:
        """What gives a worker its share: socket ``number`` (QUIC: its slot, traffic: its index) of each group."""
        bind, service = self.wanted.bind, self.wanted.service
        for group in self.groups:
            message = AddBind(
                key=self.key(group, number),
                purpose=bind.purpose,
                protocol=bind.protocol,
                address=group.address,
                service=service,
            )
            yield message, group.sockets[number].fileno()

    def keys(self, number: int) -> list[str]:
        """The keys of share ``number``, as RemoveBind names them."""
        return [self.key(group, number) for group in self.groups]

    def key(self, group: Group, number: int) -> str:
        """What both ends call one socket."""
        bind = self.wanted.bind
        return "|".join(filter(None, (bind.purpose, bind.protocol, self.wanted.service, group.address, str(number))))

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
    """All open addresses of the daemon. Each has a socket for each slot (QUIC) or worker index (traffic)."""

    def __init__(self, slots: int, indexes: int) -> None:
        self._counts: dict[Purpose, int] = {"quic": slots, "traffic": indexes}
        self._opened: dict[Bind, Opened] = {}

    def __iter__(self) -> Iterator[Opened]:
        return iter(self._opened.values())

    def of(self, purpose: Purpose) -> list[Opened]:
        """The open addresses of one purpose."""
        return [opened for opened in self if opened.wanted.bind.purpose == purpose]

    def addresses(self) -> dict[str, list[str]]:
        """What listens, for status: ``quic`` and ``traffic:SERVICE``, each with the addresses of all its binds."""
        found: dict[str, list[str]] = {}
        for opened in self:
            place = f"{opened.wanted.bind.purpose}:{opened.wanted.service}".rstrip(":")
            found.setdefault(place, []).extend(group.address for group in opened.groups)
        return found

    def prepare(self, config: Config) -> Difference:
        """Open what ``config`` wants in addition. Changes nothing that is in use; ``commit`` or ``discard`` follows.

        Raises StartError where an address cannot be had.
        """
        wanted = {want.bind: want for want in wanted_binds(config)}
        difference = Difference(removed=[opened for bind, opened in self._opened.items() if bind not in wanted])
        leaving = {(opened.wanted.bind.protocol, opened.wanted.bind.port) for opened in difference.removed}
        try:
            for bind, want in wanted.items():
                if (opened := self._opened.get(bind)) is None:
                    difference.opened.append(self._open(want, shared=(bind.protocol, bind.port) in leaving))
                elif opened.wanted.service != want.service:
                    difference.passed.append((opened, want))
        except StartError:
            self.discard(difference)
            raise
        return difference

    def commit(self, difference: Difference) -> None:
        """The new addresses are ours from now on; those removed stay open until ``close`` is called on them."""
        for opened in difference.removed:
            del self._opened[opened.wanted.bind]
        for opened, want in difference.passed:
            opened.wanted = want
        for opened in difference.opened:
            self._opened[opened.wanted.bind] = opened
            for group in opened.groups:
                log.info(
                    f"listening on {group.address}",
                    extra={"for": opened.wanted.service or "clients (QUIC)", "sockets": len(group.sockets)},
                )

    def grow(self, slots: int, indexes: int) -> None:
        """From now on so many share each address; what is open gets the sockets that it lacks.

        Raises StartError where one cannot be had; addresses that have grown by then stay so, which does no harm.
        """
        wanted: dict[Purpose, int] = {"quic": slots, "traffic": indexes}
        for opened in self:
            for group in opened.groups:
                group.grow(wanted[opened.wanted.bind.purpose], opened.wanted.config_key)
        self._counts = wanted

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
        groups = open_groups(want.bind, self._counts[want.bind.purpose], want.config_key, shared)
        if want.bind.purpose == "quic":
            warn_of_small_buffer(groups[0])
        return Opened(want, groups)


def wanted_binds(config: Config) -> list[Wanted]:
    """Every address that ``config`` names, once. A client has none: it opens its sockets itself."""
    if not isinstance(config, ServerConfig):
        return []
    quic = [Wanted(bind, "", _quic_key(config, bind)) for bind in config.quic_binds()]
    traffic = [
        Wanted(bind, service.name, f"services.{service.name}.bind")
        for service in config.services.values()
        for bind in service.traffic_binds()
    ]
    return quic + traffic


def _quic_key(config: ServerConfig, bind: Bind) -> str:
    if bind.address in config.quic.bind:
        return "quic.bind"
    services = config.services.items()
    return next(f"services.{name}.quic_bind" for name, service in services if bind.address in service.quic_bind)
