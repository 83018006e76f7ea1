"""Keys: an engine takes what it is said to take, and says no at once to what would fail in every handshake."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmux.config.schema import TlsFiles
from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.quic.engine import Engine
from qmux.quic.trial import try_material
from tests.pki.openssl import CA_TRUE, CLIENT, CLIENT_NAMES, SERVER, SERVER_NAMES, make, material
from tests.quic.harness import World

REFUSED = {"native": ["P-521", "secp256k1", "RSA 1024", "Ed448"], "aioquic": ["P-521", "secp256k1"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def of(place: Path, key: str, names: str = SERVER_NAMES, usage: str = SERVER) -> Material:
    ca = make(place, "ca", CA_TRUE)
    return material(make(place, "leaf", f"{names}\n{usage}", ca, key), ca)


def test_a_key_that_it_cannot_use_is_refused_with_the_file(engine: Engine, place: Path) -> None:
    for key in REFUSED[engine.name]:
        with pytest.raises(CertificateError) as caught:
            try_material(engine, of(place, key), TlsFiles(bundle="/etc/x.pem"))
        assert str(caught.value).startswith(f"/etc/x.pem: the {engine.name} engine cannot use it: ")
        assert str(caught.value).endswith("Ed25519, or RSA with 2048 to 4096 bits)")


def test_a_certificate_that_it_cannot_use_is_refused_with_both_files(engine: Engine, place: Path) -> None:
    """The native engine parses its own leaf, too: every one of its handshakes would fail."""
    if engine.name != "native":
        pytest.skip("aioquic leaves this to the peer; qmux.pki.own asks the same")
    made = of(place, "P-256", names=f"{SERVER_NAMES}\n1.2.3.4 = critical,DER:05:00")
    with pytest.raises(CertificateError, match=r"k\.pem for c\.pem: the native engine cannot use it: .*[Cc]ritical"):
        try_material(engine, made, TlsFiles(cert="c.pem", key="k.pem", ca="ca.pem"))


@pytest.mark.parametrize("key", ["P-384", "Ed25519", "RSA 2048"])
async def test_the_keys_that_are_said_to_work_do_at_both_ends(world: World, place: Path, key: str) -> None:
    ca = make(place, "ca", CA_TRUE)
    server = material(make(place, "server", f"{SERVER_NAMES}\n{SERVER}", ca, key), ca)
    client = material(make(place, "client", f"{CLIENT_NAMES}\n{CLIENT}", ca, key), ca)
    for each in (server, client):
        try_material(world.engine, each, TlsFiles(bundle="x.pem"))
    endpoint = world.serve(material=server)
    side = world.connect(endpoint.address, material=client)
    await side.heard.is_connected()


async def test_a_step_ca_chain_and_cert_manager_s_critical_names_connect(world: World, place: Path) -> None:
    root = make(place, "root", "basicConstraints = critical,CA:TRUE,pathlen:1")
    middle = make(place, "middle", "basicConstraints = CA:TRUE", root)
    names = SERVER_NAMES.replace("= ", "= critical,")
    server = material(make(place, "server", f"{names}\n{SERVER}", middle, subject="/"), root, middle)
    client = material(make(place, "client", f"{CLIENT_NAMES}\n{CLIENT}", middle), root, middle)
    side = world.connect(world.serve(material=server).address, material=client)
    await side.heard.is_connected()


async def test_a_peer_with_another_key_is_told_which_are_accepted(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A P-384 key for both engines' sake: as if it were of a kind that ours does not take."""
    ca = make(place, "ca", CA_TRUE)
    server = material(make(place, "server", f"{SERVER_NAMES}\n{SERVER}", ca), ca)
    client = material(make(place, "client", f"{CLIENT_NAMES}\n{CLIENT}", ca, "P-384"), ca)
    monkeypatch.setattr("qmux.pki.verify.is_accepted", lambda key: key.curve.name != "secp384r1")
    endpoint = world.serve(material=server)
    world.connect(endpoint.address, material=client)
    reason = await (await endpoint.side()).heard.is_closed()
    assert "the certificate's key is ECDSA secp384r1; accepted are ECDSA P-256" in reason.message
