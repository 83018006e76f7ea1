"""What an engine may do beyond the seam: serve the users of a client alone, from their request to their last byte.

An engine that can is a ``DiallingEngine``. It takes over what is usual: a request for a service whose target it knows,
a service that accepts at once. Everything else it gives to the layer above as a stream that nothing was read of, so
that messages, refusals and their counters are made in one place. Of its users it tells no more than numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from typing_extensions import override

from qmux.quic.engine import Connection, Engine, RelayLimits, Stream
from qmux.quic.offload import OffloadCounts, OffloadEnd

Address = tuple[str, int] | str
"""An IP address without a scope and a port, or the path of a Unix socket."""


OnChange = Callable[[], None]
OnEnd = Callable[[OffloadEnd], None]


class Dialling(Protocol):
    """Serves the users of one client on all its connections."""

    def set_target(self, service: str, address: Address, timeout_s: float, valid_s: float | None = None) -> None:
        """New users of ``service`` are connected to ``address``; ``valid_s``: no longer than that."""
        ...

    def clear_targets(self) -> None:
        """Serve no user connection any more but those that are being connected."""
        ...

    def serve(self, connection: Connection, limits: Mapping[str, RelayLimits]) -> None:
        """The peer's streams on ``connection`` are users from now on, of these services."""
        ...

    def users_on(self, connection: Connection) -> int:
        """User connections on one connection, with those that are not relayed yet."""
        ...

    @property
    def users(self) -> int:
        """User connections on all connections."""
        ...

    def counts(self) -> dict[str, OffloadCounts]:
        """By service, since the start."""
        ...

    def expect_change(self) -> None:
        """``on_change`` is called once, after the next change; to be asked for before looking at the numbers."""
        ...

    def tell_usual_ends(self, tell: bool) -> None:
        """Whether ``on_end`` hears also of relays that ended as somebody wanted it."""
        ...

    def close(self) -> None:
        """Forget the targets."""
        ...


@runtime_checkable
class DiallingEngine(Protocol):
    """An engine that serves users alone."""

    def dialling(self, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> Dialling:
        """For one client. ``head_timeout_s``: how long a stream may take to say what its user wants; it is aborted
        then. ``on_change``: users came or went. ``on_end``: a relay was cut off.
        """
        ...


@runtime_checkable
class DialledStream(Protocol):
    """A stream that the engine gave up. ``dialled_s``: how long it has tried, in seconds."""

    dialled_s: float


def dialled_s(stream: Stream) -> float:
    """How long the service of ``stream`` was dialled before the stream came here."""
    return stream.dialled_s if isinstance(stream, DialledStream) else 0.0


class NoDialling(Dialling):
    """For an engine that serves no user connection alone."""

    users = 0

    @override
    def set_target(self, service: str, address: Address, timeout_s: float, valid_s: float | None = None) -> None:
        pass

    @override
    def clear_targets(self) -> None:
        pass

    @override
    def serve(self, connection: Connection, limits: Mapping[str, RelayLimits]) -> None:
        pass

    @override
    def users_on(self, connection: Connection) -> int:
        return 0

    @override
    def counts(self) -> dict[str, OffloadCounts]:
        return {}

    @override
    def expect_change(self) -> None:
        pass

    @override
    def tell_usual_ends(self, tell: bool) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def dialling_of(engine: Engine, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> Dialling:
    """What ``engine`` offers, or one that does nothing."""
    return engine.dialling(head_timeout_s, on_change, on_end) if isinstance(engine, DiallingEngine) else NoDialling()
