"""Mutual TLS: who is refused, before anything is done for them, and whether each end can tell why."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.quic.engine import CloseKind, CloseReason
from tests.quic.certificates import CLIENT_AUTH, DAY, SERVER_AUTH, Pki
from tests.quic.harness import World

BAD_CLIENTS: list[tuple[str, Callable[[Pki], Material], int, str]] = [
    ("another CA", lambda pki: pki.foreign_client, 48, "another CA"),
    ("expired", lambda pki: pki.made(not_before=-2 * DAY, not_after=-DAY), 45, "expired"),
    ("not yet valid", lambda pki: pki.made(not_before=DAY, not_after=2 * DAY), 45, "not valid before"),
    ("wrong usage", lambda pki: pki.made(usage=SERVER_AUTH, names=["qmux:client:alpha"]), 43, "clientAuth"),
    ("self-signed", lambda pki: pki.made(self_signed=True), 48, "self-signed"),
    ("without a client name", lambda pki: pki.made(usage=CLIENT_AUTH, names=["alpha"]), 42, "qmux:client:"),
]

BAD_SERVERS: list[tuple[str, Callable[[Pki], Material], str]] = [
    ("another CA", lambda pki: pki.foreign_server, "another CA"),
    ("expired", lambda pki: pki.made(usage=SERVER_AUTH, not_before=-2 * DAY, not_after=-DAY), "expired"),
    ("wrong usage", lambda pki: pki.made(usage=CLIENT_AUTH, names=["localhost"]), "serverAuth"),
    ("wrong name", lambda pki: pki.made(usage=SERVER_AUTH, names=["elsewhere.example"]), "not for"),
    ("self-signed", lambda pki: pki.made(usage=SERVER_AUTH, self_signed=True), "self-signed"),
]


@pytest.mark.parametrize(("make", "alert", "words"), [c[1:] for c in BAD_CLIENTS], ids=[c[0] for c in BAD_CLIENTS])
async def test_a_bad_client_never_connects(
    world: World, make: Callable[[Pki], Material], alert: int, words: str
) -> None:
    server = world.serve()
    client = world.connect(server.address, material=make(world.pki))
    reason = await client.heard.is_closed()
    assert (reason.kind, reason.code) == (CloseKind.TLS, alert)
    assert words in reason.message
    assert "connected" not in client.heard.told
    theirs = await server.side()
    own = await theirs.heard.is_closed()
    assert (own.kind, own.message) == (CloseKind.CERTIFICATE, reason.message)
    assert theirs.heard.told == ["closed"]
    assert theirs.connection.identity is None
    stats = server.endpoint.stats()
    assert (stats.handshakes_failed, stats.handshakes_completed, stats.half_open) == (1, 0, 0)


@pytest.mark.mixed
async def test_a_client_without_a_certificate_never_connects(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    server = world.serve()
    without_certificate(world, monkeypatch)
    reason = await world.connect(server.address).heard.is_closed()
    assert (reason.kind, reason.code) == (CloseKind.TLS, 116)
    theirs = await server.side()
    await theirs.heard.is_closed()
    assert theirs.heard.told == ["closed"]


def without_certificate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.engine.name == "native":
        from qmux.quic.native_engine import outgoing

        class Bare(outgoing.Credentials):
            def __init__(self, material: Material) -> None:
                super().__init__(material)
                self.chain = []

        monkeypatch.setattr(outgoing, "Credentials", Bare)
        return
    from qmux.quic.aioquic_engine.credentials import Credentials

    configuration = Credentials.configuration

    def bare(self: Credentials, *, is_client: bool, **settings: Any) -> object:
        made = configuration(self, is_client=is_client, **settings)
        if is_client:
            made.certificate = made.private_key = None
        return made

    monkeypatch.setattr(Credentials, "configuration", bare)


@pytest.mark.parametrize(("make", "words"), [c[1:] for c in BAD_SERVERS], ids=[c[0] for c in BAD_SERVERS])
async def test_a_client_refuses_a_bad_server_and_says_why(
    world: World, make: Callable[[Pki], Material], words: str
) -> None:
    server = world.serve(material=make(world.pki))
    client = world.connect(server.address)
    reason = await client.heard.is_closed()
    assert reason.kind == CloseKind.CERTIFICATE
    assert words in reason.message
    assert client.heard.told == ["closed"]
    theirs = await server.side()
    assert (await theirs.heard.is_closed()).kind == CloseKind.TLS
    assert theirs.heard.told == ["closed"]


@pytest.mark.mixed
async def test_the_reasons_can_be_told_apart(world: World) -> None:
    async def reason(server: Material, client: Material) -> CloseReason:
        return await world.connect(world.serve(material=server).address, material=client).heard.is_closed()

    pki = world.pki
    reasons = [
        await reason(pki.foreign_server, pki.client),
        await reason(pki.made(usage=SERVER_AUTH, not_before=-2 * DAY, not_after=-DAY), pki.client),
        await reason(pki.made(usage=SERVER_AUTH, names=["elsewhere.example"]), pki.client),
        await reason(pki.server, pki.foreign_client),
        await reason(pki.server, pki.made(not_before=-2 * DAY, not_after=-DAY)),
    ]
    assert len({(r.kind, r.code, r.message.split("(")[0][:40]) for r in reasons}) == len(reasons)


@pytest.mark.mixed
async def test_new_material_is_used_for_new_handshakes_only(world: World) -> None:
    server = world.serve()
    old = await world.pair(server)
    server.reconfigure(material=world.pki.made(usage=SERVER_AUTH, names=["renewed.example"]))
    new = world.connect(server.address, server_name="renewed.example")
    await new.heard.is_connected()
    assert (await world.connect(server.address).heard.is_closed()).kind == CloseKind.CERTIFICATE
    assert not old.client.connection.is_closed


async def test_material_that_cannot_be_used_changes_nothing(world: World) -> None:
    server = world.serve()
    good, other = world.pki.server, world.pki.client
    with pytest.raises(CertificateError):
        server.reconfigure(material=Material(good.chain, other.key, good.ca))
    await world.pair(server)
    with pytest.raises(CertificateError):
        world.connect(server.address, material=Material(good.chain, other.key, good.ca))


@pytest.mark.mixed
async def test_the_identity_names_what_the_certificate_names(world: World) -> None:
    material = world.pki.made(names=["qmux:client:beta", "qmux:service:web", "qmux:service:db"])
    pair = await world.pair(material=material)
    identity = pair.server.connection.identity
    assert identity is not None
    assert (identity.principal, identity.services) == ("beta", ("web", "db"))
    expires = datetime.datetime.fromtimestamp(identity.not_after, datetime.UTC)
    assert datetime.timedelta() < expires - datetime.datetime.now(datetime.UTC) < 2 * DAY
