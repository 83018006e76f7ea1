"""What ``qmux pki show`` says of a certificate."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from qmux.errors import CertificateError
from qmux.pki import authority, description
from tests.pki.made import CLIENT_SANS, DAY, NOW, SERVER_AUTH, SERVER_SANS, make_ca, make_leaf


def test_a_bundle_shows_the_leaf_and_the_ca_and_no_key(tmp_path: Path) -> None:
    authority.init(tmp_path)
    path = authority.issue_client(tmp_path, "pod-1", ["a", "b"])
    client, ca = description.describe_file(path)
    assert (client["kind"], client["names"], client["services"]) == ("client", ["pod-1"], ["a", "b"])
    assert client["valid_now"]
    assert client["issuer"] == ca["subject"] == ca["issuer"]
    assert (ca["kind"], ca["names"], ca["services"]) == ("CA", [], [])
    assert "PRIVATE" not in str(client) + str(ca)
    assert description.describe_file(tmp_path / "ca.pem") == [ca]


@pytest.mark.parametrize(
    ("leaf", "left"),
    [
        (make_leaf(make_ca()), "1 day left"),
        (make_leaf(make_ca(), not_before=NOW - 2 * DAY, not_after=NOW - DAY), "expired"),
        (make_leaf(make_ca(), not_before=NOW + DAY, not_after=NOW + 2 * DAY), "not yet valid"),
    ],
)
def test_validity_is_said_in_words(leaf: description.Any, left: str) -> None:
    facts = description.facts(leaf.certificate, NOW)
    text = description.as_text(facts)
    assert f"UTC, {left}\n" in text
    assert facts["valid_now"] is (left == "1 day left")
    assert facts["fingerprint"] in text


def test_kinds_are_told_apart() -> None:
    ca = make_ca()
    assert description.facts(ca.certificate, NOW)["kind"] == "CA"
    server = description.facts(make_leaf(ca, usage=SERVER_AUTH, sans=SERVER_SANS).certificate, NOW)
    assert (server["kind"], server["names"]) == ("server", ["tunnel.example.com"])
    plain = make_leaf(ca, usage=None, sans=[*CLIENT_SANS, x509.DNSName("x")])
    assert description.facts(plain.certificate, NOW)["kind"] == "certificate"


@pytest.mark.parametrize("content", [b"", b"key = 1\n", b"x" * (description.MAX_FILE_BYTES + 1)])
def test_a_file_without_certificates_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match="has no certificate"):
        description.describe_file(path)


def test_a_broken_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(CertificateError, match="cannot be read"):
        description.describe_file(path)
    with pytest.raises(CertificateError, match="No such file"):
        description.describe_file(tmp_path / "y.pem")


def test_names_in_it_steer_no_terminal() -> None:
    text = description.as_text(description.facts(make_leaf(make_ca("\x9b2J")).certificate, NOW))
    assert r"CN=\x9b2J" in text
    assert all(line.isprintable() for line in text.split("\n"))
