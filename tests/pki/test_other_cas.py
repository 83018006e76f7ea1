"""Certificates of other people's CAs, made by ``openssl``: what OpenSSL and Go take is taken, the rest is explained."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from qmux.pki.bundle import parse
from qmux.pki.material import Material, Role
from qmux.pki.own import Flaw, flaws
from tests.pki.openssl import (
    CA_TRUE,
    CLIENT,
    CLIENT_NAMES,
    SERVER,
    SERVER_NAMES,
    Issued,
    make,
    material,
    plain_ca,
)

CERT_SIGN = "keyUsage = critical,keyCertSign,cRLSign"
STEP_PROVISIONER = "1.3.6.1.4.1.37476.9000.64.1 = DER:30:05:02:01:01:04:00"


class Kind(NamedTuple):
    """What a certificate of one end needs."""

    role: Role
    names: str
    usage: str


KINDS = [Kind("server", SERVER_NAMES, SERVER), Kind("client", CLIENT_NAMES, CLIENT)]


def critical(line: str) -> str:
    return line.replace("= ", "= critical,")


def judged(made: Material, kind: Kind) -> list[Flaw]:
    return flaws(parse(made.chain, made.key, made.ca), kind.role, datetime.datetime.now(datetime.UTC))


def of_plain_openssl(place: Path, kind: Kind) -> Material:
    ca = plain_ca(place)
    return material(make(place, "leaf", f"{kind.names}\n{kind.usage}", ca), ca)


def of_a_ca_that_is_not_critical(place: Path, kind: Kind) -> Material:
    ca = make(place, "ca", "basicConstraints = CA:TRUE")
    return material(make(place, "leaf", f"{kind.names}\n{kind.usage}", ca), ca)


def of_a_ca_for_tls(place: Path, kind: Kind) -> Material:
    ca = make(place, "ca", f"{CA_TRUE}\nextendedKeyUsage = critical,serverAuth,clientAuth\n{CERT_SIGN}")
    return material(make(place, "leaf", f"{kind.names}\n{kind.usage}", ca), ca)


def with_critical_leaf(place: Path, kind: Kind) -> Material:
    ca = make(place, "ca", CA_TRUE)
    lines = f"{critical(kind.names)}\n{critical(kind.usage)}\nbasicConstraints = critical,CA:FALSE"
    return material(make(place, "leaf", lines, ca), ca)


def with_openssl_1_s_habits(place: Path, kind: Kind) -> Material:
    none = "subjectKeyIdentifier = none\nauthorityKeyIdentifier = none"
    ca = make(place, "ca", f"{CA_TRUE}\n{none}")
    return material(make(place, "leaf", f"{kind.names}\n{kind.usage}\n{none}", ca), ca)


def of_an_intermediate_without_key_usage(place: Path, kind: Kind) -> Material:
    root = make(place, "root", f"{CA_TRUE}\n{CERT_SIGN}")
    middle = make(place, "middle", CA_TRUE, root)
    return material(make(place, "leaf", f"{kind.names}\n{kind.usage}", middle), root, middle)


def of_cert_manager(place: Path, kind: Kind) -> Material:
    """A CA of a self-signed issuer, and a Certificate without commonName, whose name is critical."""
    ca = make(place, "ca", f"{CA_TRUE}\nkeyUsage = critical,digitalSignature,keyEncipherment,keyCertSign")
    lines = (
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature,keyEncipherment\n"
        f"{kind.usage}\n{critical(kind.names)}"
    )
    return material(make(place, "leaf", lines, ca, subject="/"), ca)


def of_step_ca(place: Path, kind: Kind) -> Material:
    root = make(place, "root", f"basicConstraints = critical,CA:TRUE,pathlen:1\n{CERT_SIGN}")
    middle = make(place, "middle", f"basicConstraints = critical,CA:TRUE,pathlen:0\n{CERT_SIGN}", root)
    lines = (
        "keyUsage = critical,digitalSignature\nextendedKeyUsage = serverAuth,clientAuth\n"
        f"{kind.names}\n{STEP_PROVISIONER}"
    )
    return material(make(place, "leaf", lines, middle), root, middle)


ACCEPTED = [
    of_plain_openssl,
    of_a_ca_that_is_not_critical,
    of_a_ca_for_tls,
    with_critical_leaf,
    with_openssl_1_s_habits,
    of_an_intermediate_without_key_usage,
    of_cert_manager,
    of_step_ca,
]


@pytest.mark.parametrize("kind", KINDS, ids=["server", "client"])
@pytest.mark.parametrize("shape", ACCEPTED)
def test_what_openssl_and_go_take_is_taken(tmp_path: Path, shape: Callable[[Path, Kind], Material], kind: Kind) -> None:
    assert judged(shape(tmp_path, kind), kind) == []


@pytest.mark.parametrize("key", ["P-384", "Ed25519", "RSA 2048"])
def test_other_keys_that_are_taken(tmp_path: Path, key: str) -> None:
    ca = make(tmp_path, "ca", CA_TRUE)
    kind = KINDS[1]
    assert judged(material(make(tmp_path, "leaf", f"{kind.names}\n{kind.usage}", ca, key), ca), kind) == []


LEAF = "{names}\n{usage}"
REFUSED = [
    ("an Ed25519 CA", CA_TRUE, LEAF, {"key": "Ed25519"}, "a CA's key must be RSA from 2048 bits or ECDSA"),
    ("a CA with RSA 1024", CA_TRUE, LEAF, {"key": "RSA 1024"}, "RSA key is too weak"),
    ("a CA that may not sign", f"{CA_TRUE}\nkeyUsage = critical,cRLSign", LEAF, {}, "its key usage lacks keyCertSign"),
    (
        "a CA for other uses",
        f"{CA_TRUE}\nextendedKeyUsage = codeSigning",
        LEAF,
        {},
        "its extended key usage lacks serverAuth, so it may not issue such certificates",
    ),
    ("no CA", "basicConstraints = CA:FALSE", LEAF, {}, "basicConstraints.cA must be asserted in a CA certificate"),
    ("SHA-1", CA_TRUE, LEAF, {"leaf_digest": "sha1"}, "with SHA-256, SHA-384 or SHA-512"),
    ("a CA as leaf", CA_TRUE, f"{LEAF}\n{CA_TRUE}", {}, "it is a CA's own; issue one for this machine with it"),
    (
        "an unknown critical extension",
        CA_TRUE,
        f"{LEAF}\n1.2.3.4 = critical,DER:05:00",
        {},
        "1.2.3.4: certificate contains unaccounted-for critical extensions",
    ),
    (
        "an identifier that is critical",
        CA_TRUE,
        f"{LEAF}\nsubjectKeyIdentifier = critical,hash",
        {},
        "the certificate is not accepted",
    ),
]


@pytest.mark.parametrize(
    ("ca_lines", "leaf_lines", "how", "says"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_is_refused_has_its_reason(
    tmp_path: Path, ca_lines: str, leaf_lines: str, how: dict[str, str], says: str
) -> None:
    kind = KINDS[0]
    ca = make(tmp_path, "ca", ca_lines, key=how.get("key", "P-256"))
    lines = leaf_lines.format(names=kind.names, usage=kind.usage)
    leaf = make(tmp_path, "leaf", lines, ca, digest=how.get("leaf_digest", "sha256"))
    (flaw,) = judged(material(leaf, ca), kind)
    assert says in flaw.text
    assert not flaw.is_warning


@pytest.mark.parametrize("key", ["P-521", "secp256k1", "RSA 1024", "Ed448"])
def test_a_key_that_not_both_engines_take_is_named(tmp_path: Path, key: str) -> None:
    ca = make(tmp_path, "ca", CA_TRUE)
    for kind in KINDS:
        leaf = make(tmp_path, f"leaf-{kind.role}", f"{kind.names}\n{kind.usage}", ca, key)
        (flaw,) = judged(material(leaf, ca), kind)
        assert flaw.text.startswith("the certificate's key is ")
        assert flaw.text.endswith("accepted are ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits")


def test_an_intermediate_that_may_not_is_not_called_another_ca(tmp_path: Path) -> None:
    kind = KINDS[0]
    root = make(tmp_path, "root", f"basicConstraints = critical,CA:TRUE,pathlen:0\n{CERT_SIGN}")
    middle = make(tmp_path, "middle", CA_TRUE, root)
    leaf = make(tmp_path, "leaf", f"{kind.names}\n{kind.usage}", middle)
    (flaw,) = judged(material(leaf, root, middle), kind)
    assert "path length" in flaw.text
    assert "another CA" not in flaw.text


def test_another_ca_than_the_one_beside_it_is_a_warning_and_the_rest_is_judged(tmp_path: Path) -> None:
    kind = KINDS[0]
    ca, other = make(tmp_path, "ca", CA_TRUE), make(tmp_path, "other", CA_TRUE)
    leaf = make(tmp_path, "leaf", f"{kind.names}\n{kind.usage}", ca)
    (flaw,) = judged(material(leaf, other), kind)
    assert flaw.text == (
        "the certificate is signed by another CA (CN=ca), not by the CA beside it: peers refuse it, unless they trust "
        "that other CA"
    )
    assert flaw.is_warning
    odd: Issued = make(tmp_path, "odd", f"{kind.names}\n{kind.usage}", ca, "P-521")
    assert [each.is_warning for each in judged(material(odd, other), kind)] == [True, False]
    middle = make(tmp_path, "middle", f"{CA_TRUE}\nkeyUsage = cRLSign", ca)
    below = make(tmp_path, "below", f"{kind.names}\n{kind.usage}", middle)
    texts = [each.text for each in judged(material(below, other, middle), kind)]
    assert "keyCertSign" in texts[1]
