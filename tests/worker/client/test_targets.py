from __future__ import annotations

import socket

from qmux.config.schema import ClientServiceConfig, Target
from qmux.quic.dialling import Address, NoDialling
from qmux.worker.client.targets import NAME_VALID_S, Targets


class Dialling(NoDialling):
    """Remembers the targets that it was given, and for how long."""

    def __init__(self) -> None:
        self.targets: dict[str, tuple[Address, float, float | None]] = {}

    def set_target(self, service: str, address: Address, timeout_s: float, valid_s: float | None = None) -> None:
        self.targets[service] = address, timeout_s, valid_s

    def clear_targets(self) -> None:
        self.targets.clear()


def services(**targets: Target) -> dict[str, ClientServiceConfig]:
    return {
        name: ClientServiceConfig(name=name, target=target, connect_timeout_s=2.0) for name, target in targets.items()
    }


class Connected(socket.socket):
    """A socket that is connected to ``peer``."""

    def __init__(self, peer: tuple[str | int, ...] | None) -> None:
        super().__init__()
        self._peer = peer

    def getpeername(self) -> tuple[str | int, ...]:
        if self._peer is None:
            raise OSError("not connected any more")
        return self._peer


NAME = services(web=Target("app.internal", 80))


def test_what_is_configured_as_an_address() -> None:
    dialling = Dialling()
    targets = Targets(
        dialling,
        services(
            v4=Target("127.0.0.1", 80),
            v6=Target("::1", 80),
            unix=Target(path="/run/app.sock"),
            name=Target("localhost", 80),
            scoped=Target("fe80::1%lo", 80),
        ),
    )
    assert dialling.targets == {
        "v4": (("127.0.0.1", 80), 2.0, None),
        "v6": (("::1", 80), 2.0, None),
        "unix": ("/run/app.sock", 2.0, None),
    }
    targets.follow(services(v4=Target("127.0.0.2", 80)))
    assert dialling.targets == {"v4": (("127.0.0.2", 80), 2.0, None)}


def test_a_name_is_known_for_a_moment() -> None:
    dialling = Dialling()
    targets = Targets(dialling, NAME)
    assert dialling.targets == {}
    with Connected(("192.0.2.1", 80)) as sock:
        targets.reached(NAME["web"], sock)
    assert dialling.targets == {"web": (("192.0.2.1", 80), 2.0, NAME_VALID_S)}
    with Connected(("2001:db8::1", 80, 0, 0)) as sock:
        targets.reached(NAME["web"], sock)
    assert dialling.targets == {"web": (("2001:db8::1", 80), 2.0, NAME_VALID_S)}


def test_an_address_that_says_nothing_about_others() -> None:
    dialling = Dialling()
    targets = Targets(dialling, NAME)
    for peer in (("fe80::1%eth0", 80, 0, 2), None):
        with Connected(peer) as sock:
            targets.reached(NAME["web"], sock)
    fixed = services(web=Target("127.0.0.1", 80))
    with Connected(("127.0.0.1", 80)) as sock:
        targets.reached(fixed["web"], sock)  # was dialled before a reload made it a name
        targets.reached(services(web=Target("other.internal", 80))["web"], sock)
    assert dialling.targets == {}


def test_nobody_is_served_while_draining() -> None:
    dialling = Dialling()
    targets = Targets(dialling, services(web=Target("127.0.0.1", 80)))
    targets.drain()
    assert dialling.targets == {}
    targets.follow(NAME)
    with Connected(("192.0.2.1", 80)) as sock:
        targets.reached(NAME["web"], sock)
    targets.follow(services(web=Target("127.0.0.1", 80)))
    assert dialling.targets == {}


def test_a_target_on_one_link_is_left_to_python() -> None:
    dialling = Dialling()
    Targets(dialling, services(a=Target("fe80::1%lo", 80), b=Target("::1", 80)))
    assert set(dialling.targets) == {"b"}
