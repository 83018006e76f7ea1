"""The files that ``qmux pki init|issue`` writes: what is in them, who may read them, and what is never overwritten."""

from __future__ import annotations

import datetime
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmux.errors import CertificateError, UsageError
from qmux.pki import authority, bundle, verify
from tests.pki.openssl import CA_TRUE, make

DAY = datetime.timedelta(days=1)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    authority.init(tmp_path)
    return tmp_path


def read(path: Path) -> bundle.Bundle:
    parts = bundle.split_bundle(path.read_bytes(), path.name)
    return bundle.parse(parts.chain, parts.key, parts.ca)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_the_ca_may_sign_and_nothing_else(pki: Path) -> None:
    ca = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)
    constraints = extension(ca, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extension(ca, x509.KeyUsage)
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    assert extension(ca, x509.SubjectKeyIdentifier)
    assert ca.subject == ca.issuer
    assert 9 * 365 < (ca.not_valid_after_utc - now()).days <= 10 * 365


def test_two_cas_have_different_names(tmp_path: Path) -> None:
    names = set()
    for folder in ("a", "b"):
        authority.init(tmp_path / folder)
        names.add(x509.load_pem_x509_certificate((tmp_path / folder / "ca.pem").read_bytes()).subject)
    assert len(names) == 2


def test_only_the_owner_reads_keys(pki: Path) -> None:
    old_mask = os.umask(0)
    try:
        server = authority.issue_server(pki, ["localhost"])
    finally:
        os.umask(old_mask)
    assert (mode(pki / "ca.key"), mode(server)) == (0o600, 0o600)
    assert mode(pki / "ca.pem") == 0o644


def test_a_server_bundle_is_accepted_by_each_name_and_as_nothing_else(pki: Path) -> None:
    path = authority.issue_server(pki, ["t.example.com", "*.t.example.com", "192.0.2.1", "2001:db8::1"])
    assert path == pki / "t.example.com.pem"
    made = read(path)
    der = [made.leaf.public_bytes(bundle.serialization.Encoding.DER)]
    for name in ("t.example.com", "x.t.example.com", "192.0.2.1", "2001:db8::1"):
        verify.verify_server(der, made.ca, name, now())
    with pytest.raises(verify.CertificateRejected):
        verify.verify_server(der, made.ca, "example.com", now())
    with pytest.raises(verify.CertificateRejected, match="lacks clientAuth"):
        verify.identity(der, made.ca, now())


def test_a_client_bundle_says_who_it_is_and_what_it_may_serve(pki: Path) -> None:
    made = read(authority.issue_client(pki, "pod-1", ["a", "b"]))
    der = [made.leaf.public_bytes(bundle.serialization.Encoding.DER)]
    identity = verify.identity(der, made.ca, now())
    assert (identity.principal, identity.services) == ("pod-1", ("a", "b"))
    with pytest.raises(verify.CertificateRejected, match="lacks serverAuth"):
        verify.verify_server(der, made.ca, "pod-1", now())


@pytest.mark.parametrize("kind", ["server", "client"])
def test_a_leaf_has_what_verifiers_ask_for(pki: Path, kind: str) -> None:
    path = authority.issue_server(pki, ["localhost"]) if kind == "server" else authority.issue_client(pki, "c", ["*"])
    leaf, ca = read(path).leaf, read(path).ca[0]
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert extension(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = extension(leaf, x509.KeyUsage)
    assert isinstance(usage.value, x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if kind == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    assert extension(leaf, x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage([wanted])
    authority_id = extension(leaf, x509.AuthorityKeyIdentifier).value
    subject_id = extension(ca, x509.SubjectKeyIdentifier).value
    assert isinstance(authority_id, x509.AuthorityKeyIdentifier)
    assert isinstance(subject_id, x509.SubjectKeyIdentifier)
    assert authority_id.key_identifier == subject_id.digest
    assert extension(leaf, x509.SubjectKeyIdentifier)
    assert leaf.not_valid_before_utc <= now() - authority.CLOCK_SKEW + datetime.timedelta(minutes=1)
    assert leaf.not_valid_after_utc - now() <= authority.LEAF_DAYS * DAY
    assert leaf.not_valid_after_utc < ca.not_valid_after_utc


def test_issued_again_it_is_renewed(pki: Path) -> None:
    old = read(authority.issue_client(pki, "pod-1", ["a"]))
    new = read(authority.issue_client(pki, "pod-1", ["a", "b"]))
    assert new.leaf.serial_number != old.leaf.serial_number
    assert new.leaf.public_key() != old.leaf.public_key()
    assert sorted(path.name for path in pki.iterdir()) == ["ca.key", "ca.pem", "pod-1.pem"]


def test_a_reader_sees_the_old_bundle_or_the_new_one_whole(pki: Path) -> None:
    path = authority.issue_client(pki, "pod-1", ["a"])
    done = threading.Event()
    serials: set[int] = set()
    problems: list[Exception] = []

    def read_all_the_time() -> None:
        while not done.is_set():
            try:
                serials.add(read(path).leaf.serial_number)
            except Exception as error:
                problems.append(error)
                return

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    for _ in range(30):
        authority.issue_client(pki, "pod-1", ["a"])
    done.set()
    reader.join()
    assert not problems
    assert serials


@pytest.mark.parametrize("content", [b"", b"my notes\n", b"-----BEGIN CERTIFICATE-----\nnonsense\n"])
def test_a_file_that_is_not_ours_is_left_alone(pki: Path, content: bytes) -> None:
    (pki / "pod-1.pem").write_bytes(content)
    with pytest.raises(CertificateError, match="left alone"):
        authority.issue_client(pki, "pod-1", ["a"])
    assert (pki / "pod-1.pem").read_bytes() == content


def test_a_bundle_of_another_ca_or_another_name_is_left_alone(
    pki: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    authority.init(other)
    foreign = authority.issue_client(other, "pod-1", ["a"]).read_bytes()
    own = authority.issue_client(pki, "pod-2", ["a"]).read_bytes()
    for content in (foreign, own):
        (pki / "pod-1.pem").write_bytes(content)
        with pytest.raises(CertificateError, match="left alone"):
            authority.issue_client(pki, "pod-1", ["a"])
        assert (pki / "pod-1.pem").read_bytes() == content


def test_a_server_and_a_client_of_one_name_do_not_replace_each_other(pki: Path) -> None:
    """Both would be written to NAME.pem: the one that came first stays."""
    server = authority.issue_server(pki, ["tunnel"])
    before = server.read_bytes()
    with pytest.raises(CertificateError, match="the bundle of a server; it was left alone"):
        authority.issue_client(pki, "tunnel", ["a"])
    assert server.read_bytes() == before
    client = authority.issue_client(pki, "pod-1", ["a"])
    before = client.read_bytes()
    with pytest.raises(CertificateError, match="the bundle of a client; it was left alone"):
        authority.issue_server(pki, ["pod-1"])
    assert client.read_bytes() == before


def test_the_ca_is_never_a_bundle(pki: Path) -> None:
    before = (pki / "ca.pem").read_bytes()
    with pytest.raises(CertificateError, match="left alone"):
        authority.issue_client(pki, "ca", ["a"])
    assert (pki / "ca.pem").read_bytes() == before


def test_a_second_init_changes_nothing(pki: Path) -> None:
    before = {path.name: path.read_bytes() for path in pki.iterdir()}
    with pytest.raises(CertificateError, match="exists already"):
        authority.init(pki)
    assert {path.name: path.read_bytes() for path in pki.iterdir()} == before


def test_without_a_ca_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="qmux pki init"):
        authority.issue_server(tmp_path, ["localhost"])


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a b", "x" * 65, "a\n"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(pki: Path, name: str) -> None:
    before = sorted(pki.rglob("*"))
    with pytest.raises(UsageError):
        authority.issue_client(pki, name, ["a"])
    with pytest.raises(UsageError):
        authority.issue_client(pki, "pod-1", [name])
    if name != "x" * 65:  # a DNS name may be as long, where its labels are short
        with pytest.raises(UsageError):
            authority.issue_server(pki, [name])
    assert sorted(pki.rglob("*")) == before


def test_a_client_without_services_is_asked_for_them(pki: Path) -> None:
    with pytest.raises(UsageError, match="--service"):
        authority.issue_client(pki, "pod-1", [])
    with pytest.raises(UsageError, match="at least one"):
        authority.issue_server(pki, [])


# --- renewal ---


def names_in(path: Path) -> list[str]:
    return verify.server_names(read(path).leaf)


def test_issued_again_a_server_keeps_its_names_and_gets_more(pki: Path) -> None:
    path = authority.issue_server(pki, ["a.example", "b.example", "192.0.2.1"])
    assert authority.issue_server(pki, ["A.example."]) == path
    assert names_in(path) == ["a.example", "b.example", "192.0.2.1"]
    authority.issue_server(pki, ["a.example", "c.example"], drop=["b.example"])
    assert sorted(names_in(path)) == ["192.0.2.1", "a.example", "c.example"]


def test_issued_again_a_client_keeps_its_services(pki: Path) -> None:
    path = authority.issue_client(pki, "pod-1", ["a", "b"])
    authority.issue_client(pki, "pod-1", [])
    assert verify.client_names(read(path).leaf) == (["pod-1"], ("a", "b"))
    authority.issue_client(pki, "pod-1", ["c"], drop=["a"])
    assert verify.client_names(read(path).leaf) == (["pod-1"], ("b", "c"))


def test_renew_takes_names_and_services_from_the_bundle(pki: Path) -> None:
    server = authority.issue_server(pki, ["2001:db8::1", "b.example"])
    client = authority.issue_client(pki, "pod.1", ["a", "b"])
    old = read(server).leaf.serial_number
    assert authority.renew(pki, "2001:db8::1") == server
    assert names_in(server) == ["2001:db8::1", "b.example"]
    assert read(server).leaf.serial_number != old
    assert authority.renew(pki, "pod.1", drop=["a"]) == client
    assert verify.client_names(read(client).leaf) == (["pod.1"], ("b",))


@pytest.mark.parametrize(
    ("name", "drop", "words"),
    [
        ("a.example", ["zzz"], "has no name zzz to drop; it has a.example, b.example"),
        ("a.example", ["a.example"], "is called after a.example, which it keeps"),
        ("pod-1", ["x"], "without x it has no service left"),
        ("nobody", [], "no such bundle; make one"),
        ("ca", [], "left alone"),
    ],
)
def test_what_cannot_be_renewed_is_told_and_changes_nothing(pki: Path, name: str, drop: list[str], words: str) -> None:
    for path in (authority.issue_server(pki, ["a.example", "b.example"]), authority.issue_client(pki, "pod-1", ["x"])):
        assert path.exists()
    before = {path: path.read_bytes() for path in pki.iterdir()}
    with pytest.raises((CertificateError, UsageError), match=words):
        authority.renew(pki, name, drop)
    assert {path: path.read_bytes() for path in pki.iterdir()} == before


# --- names ---


def test_a_long_name_stands_in_the_san_alone(pki: Path) -> None:
    name = ".".join(["x" * 60] * 4) + ".example"
    path = authority.issue_server(pki, [name, "short.example"])
    made = read(path)
    assert list(made.leaf.subject) == []
    assert extension(made.leaf, x509.SubjectAlternativeName).critical
    der = [made.leaf.public_bytes(bundle.serialization.Encoding.DER)]
    for each in (name, "short.example"):
        verify.verify_server(der, made.ca, each, now())
    authority.renew(pki, name)
    assert names_in(path) == [name, "short.example"]


def test_the_longest_name_has_a_file(pki: Path) -> None:
    name = ".".join(["x" * 63, "y" * 63, "z" * 63, "w" * 61])
    assert len(name) == 253
    path = authority.issue_server(pki, [name])
    assert authority.renew(pki, name) == path


@given(st.text(max_size=100) | st.from_regex(r"(\*\.)?[a-z0-9:._%-]{0,70}", fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_issued_can_be_verified(tmp_path: Path, name: str) -> None:
    """Whatever name ``issue server`` takes is one that a client can ask for."""
    if not (tmp_path / "ca.pem").exists():
        authority.init(tmp_path)
    try:
        made = read(authority.issue_server(tmp_path, [name]))
    except (UsageError, CertificateError):
        return
    (issued,) = verify.server_names(made.leaf)
    der = [made.leaf.public_bytes(bundle.serialization.Encoding.DER)]
    verify.verify_server(der, made.ca, issued.replace("*", "any"), now())


def test_a_ca_of_somebody_else_may_issue(tmp_path: Path) -> None:
    """An EC CA made by openssl, without the identifiers that ours has."""
    made = make(tmp_path, "ca", f"{CA_TRUE}\nsubjectKeyIdentifier = none\nauthorityKeyIdentifier = none")
    assert made.certificate == (tmp_path / "ca.pem").read_bytes()
    path = authority.issue_server(tmp_path, ["a.example"])
    der = [read(path).leaf.public_bytes(bundle.serialization.Encoding.DER)]
    verify.verify_server(der, read(path).ca, "a.example", now())


def test_a_ca_that_peers_would_refuse_issues_nothing(tmp_path: Path) -> None:
    make(tmp_path, "ca", f"{CA_TRUE}\nkeyUsage = cRLSign")
    with pytest.raises(CertificateError, match=r"what it issues is of no use: .*keyCertSign"):
        authority.issue_server(tmp_path, ["a.example"])
    assert not (tmp_path / "a.example.pem").exists()


def test_the_key_of_another_ca_issues_nothing(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    authority.init(other)
    (pki / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key: is not the key of"):
        authority.issue_server(pki, ["a.example"])
