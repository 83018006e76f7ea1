"""Who is accepted, and in which words the others are refused. The verifier's clock is an argument."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509

from qmux.pki import verify
from tests.pki.made import CLIENT_SANS, DAY, NOW, SERVER_AUTH, SERVER_SANS, Made, make_ca, make_leaf

CLIENT = x509.UniformResourceIdentifier("qmux:client:pod-1")


@pytest.fixture(scope="module")
def ca() -> Made:
    return make_ca()


def identity(ca: Made, *chain: Made) -> verify.Identity:
    return verify.identity([made.der for made in chain], [ca.certificate], NOW)


def rejection(ca: Made, *chain: Made) -> verify.CertificateRejected:
    with pytest.raises(verify.CertificateRejected) as caught:
        identity(ca, *chain)
    return caught.value


def test_a_good_client_is_who_its_names_say(ca: Made) -> None:
    leaf = make_leaf(ca)
    found = identity(ca, leaf)
    assert (found.principal, found.services) == ("pod-1", ("web",))
    assert found.may_serve("web")
    assert not found.may_serve("api")
    assert found.not_after == int((NOW + DAY).timestamp())
    assert len(found.fingerprint) == 64
    assert found.serial == f"{leaf.certificate.serial_number:x}"


def test_a_star_may_serve_everything(ca: Made) -> None:
    sans = [CLIENT, x509.UniformResourceIdentifier("qmux:service:*")]
    assert identity(ca, make_leaf(ca, sans=sans)).may_serve("anything")


def test_a_client_without_services_is_known_and_may_serve_nothing(ca: Made) -> None:
    found = identity(ca, make_leaf(ca, sans=[CLIENT]))
    assert found.services == ()
    assert not found.may_serve("")


def test_a_chain_with_an_intermediate_is_followed(ca: Made) -> None:
    middle = make_ca("middle", ca, path_length=0)
    assert identity(ca, make_leaf(middle), middle).principal == "pod-1"


def test_one_of_several_cas_suffices(ca: Made) -> None:
    other = make_ca("other")
    chain = [make_leaf(ca).der]
    assert verify.identity(chain, [other.certificate, ca.certificate], NOW).principal == "pod-1"


@pytest.mark.parametrize(
    ("leaf", "alert", "words"),
    [
        ({"not_after": NOW - DAY / 2}, verify.CERTIFICATE_EXPIRED, "the certificate expired 2026-05-31 12:00 UTC"),
        ({"not_before": NOW + DAY / 2}, verify.CERTIFICATE_EXPIRED, "not valid before 2026-06-01 12:00 UTC"),
        ({"usage": SERVER_AUTH}, verify.UNSUPPORTED_CERTIFICATE, "lacks clientAuth"),
        ({"usage": None}, verify.UNSUPPORTED_CERTIFICATE, "lacks clientAuth"),
        ({"sans": None}, verify.BAD_CERTIFICATE, "no name (SAN)"),
        ({"sans": SERVER_SANS}, verify.BAD_CERTIFICATE, "needs exactly one name qmux:client:NAME, this has none"),
        (
            {"sans": [*CLIENT_SANS, x509.UniformResourceIdentifier("qmux:client:pod-2")]},
            verify.BAD_CERTIFICATE,
            "needs exactly one name qmux:client:NAME, this has 2 of them",
        ),
        ({"sans": [x509.UniformResourceIdentifier("qmux:client:")]}, verify.BAD_CERTIFICATE, "exactly one name"),
    ],
)
def test_a_client_of_our_ca_with_one_flaw_is_refused_for_it(
    ca: Made, leaf: dict[str, object], alert: int, words: str
) -> None:
    refused = rejection(ca, make_leaf(ca, **leaf))  # type: ignore[arg-type]
    assert refused.alert == alert
    assert words in str(refused)


def test_a_certificate_without_authority_key_identifier_is_as_good(ca: Made) -> None:
    """RFC 5280 §4.2.1.1 asks CAs for it; it helps to find an issuer and proves nothing."""
    assert identity(ca, make_leaf(ca, aki=False)).principal == "pod-1"
    leaf = make_leaf(ca, aki=False, usage=SERVER_AUTH, sans=SERVER_SANS)
    verify.verify_server([leaf.der], [ca.certificate], "tunnel.example.com", NOW)


def test_a_stranger_is_refused(ca: Made) -> None:
    other = rejection(ca, make_leaf(make_ca("another")))
    assert (other.alert, str(other)) == (verify.UNKNOWN_CA, "the certificate is signed by another CA (CN=another)")
    loud = str(rejection(ca, make_leaf(make_ca("\x9b[2J" + "x" * 55))))
    assert loud == r"the certificate is signed by another CA (CN=\x9b[2J" + "x" * 55 + ")"
    own = rejection(ca, make_leaf(None))
    assert (own.alert, str(own)) == (verify.UNKNOWN_CA, "the certificate is self-signed")


def test_a_ca_of_the_same_name_is_another_ca(ca: Made) -> None:
    assert rejection(ca, make_leaf(make_ca())).alert == verify.UNKNOWN_CA


def test_a_foreign_ca_in_the_chain_vouches_for_nobody(ca: Made) -> None:
    other = make_ca("another")
    assert rejection(ca, make_leaf(other), other).alert == verify.UNKNOWN_CA


def test_a_client_cannot_issue_another(ca: Made) -> None:
    leaf = make_leaf(ca)
    refused = rejection(ca, make_leaf(leaf), leaf)
    assert refused.alert == verify.BAD_CERTIFICATE
    assert "basicConstraints" in str(refused)


def test_no_certificate_is_asked_for_one(ca: Made) -> None:
    assert rejection(ca).alert == verify.CERTIFICATE_REQUIRED


def test_a_chain_that_is_too_long_is_not_read(ca: Made) -> None:
    leaf = make_leaf(ca)
    refused = rejection(ca, *[leaf] * (verify.MAX_CHAIN + 1))
    assert "a chain of 5 certificates; at most 4 are read" in str(refused)


def test_a_chain_that_is_too_large_is_not_read(ca: Made) -> None:
    names = [x509.DNSName(f"{number}.{'x' * 60}.example.com") for number in range(250)]
    refused = rejection(ca, make_leaf(ca, sans=[*CLIENT_SANS, *names]))
    assert "at most 16000 are read" in str(refused)


def test_a_ca_in_between_that_is_out_of_date_is_named(ca: Made) -> None:
    middle = make_ca("middle", ca)
    later = NOW + 101 * DAY
    leaf = make_leaf(middle, not_after=later + DAY)
    with pytest.raises(
        verify.CertificateRejected, match=r"the certificate of its CA \(CN=middle\) expired 2026"
    ) as caught:
        verify.identity([leaf.der, middle.der], [ca.certificate], later)
    assert caught.value.alert == verify.CERTIFICATE_EXPIRED


def test_a_path_that_is_too_deep_is_refused() -> None:
    root = make_ca("root")
    path = [root]
    for number in range(verify.MAX_CHAIN):
        path.append(make_ca(f"middle-{number}", path[-1]))
    leaf = make_leaf(path[-1])
    with pytest.raises(verify.CertificateRejected):
        identity(root, leaf, *reversed(path[2:]))
    assert identity(root, make_leaf(path[3]), *reversed(path[1:4])).principal == "pod-1"


@pytest.mark.parametrize("garbage", [b"", b"\x30\x03\x02\x01\x01", b"x" * 4000])
def test_what_is_no_certificate_is_refused(ca: Made, garbage: bytes) -> None:
    with pytest.raises(verify.CertificateRejected, match="cannot be parsed"):
        verify.identity([garbage], [ca.certificate], NOW)


# --- servers ---


def server_rejection(ca: Made, leaf: Made, name: str) -> verify.CertificateRejected:
    with pytest.raises(verify.CertificateRejected) as caught:
        verify.verify_server([leaf.der], [ca.certificate], name, NOW)
    return caught.value


@pytest.mark.parametrize(
    ("san", "name"),
    [
        (x509.DNSName("tunnel.example.com"), "tunnel.example.com"),
        (x509.DNSName("tunnel.example.com"), "TUNNEL.example.com"),
        (x509.DNSName("*.example.com"), "a.example.com"),
        (x509.IPAddress(ipaddress.ip_address("192.0.2.1")), "192.0.2.1"),
        (x509.IPAddress(ipaddress.ip_address("2001:db8::1")), "2001:db8:0::1"),
    ],
)
def test_a_server_is_accepted_by_each_of_its_names(ca: Made, san: x509.GeneralName, name: str) -> None:
    leaf = make_leaf(ca, usage=SERVER_AUTH, sans=[x509.DNSName("first.example"), san])
    verify.verify_server([leaf.der], [ca.certificate], name, NOW)


@pytest.mark.parametrize("name", ["other.example.com", "example.com", "a.tunnel.example.com", "127.0.0.1"])
def test_another_name_is_refused_with_the_names_that_it_has(ca: Made, name: str) -> None:
    refused = server_rejection(ca, make_leaf(ca, usage=SERVER_AUTH, sans=SERVER_SANS), name)
    assert refused.alert == verify.BAD_CERTIFICATE
    assert str(refused) == f'the certificate is not for "{name}" but for tunnel.example.com'


@pytest.mark.parametrize(
    ("leaf", "alert", "words"),
    [
        ({"not_after": NOW - DAY / 2}, verify.CERTIFICATE_EXPIRED, "expired 2026-05-31 12:00 UTC"),
        ({"not_before": NOW + DAY / 2}, verify.CERTIFICATE_EXPIRED, "not valid before"),
        ({"usage": None}, verify.UNSUPPORTED_CERTIFICATE, "lacks serverAuth"),
        ({"sans": None}, verify.BAD_CERTIFICATE, 'not for "tunnel.example.com" but for no name at all'),
    ],
)
def test_a_server_with_one_flaw_is_refused_for_it(ca: Made, leaf: dict[str, object], alert: int, words: str) -> None:
    made = make_leaf(ca, **{"usage": SERVER_AUTH, "sans": SERVER_SANS, **leaf})  # type: ignore[arg-type]
    refused = server_rejection(ca, made, "tunnel.example.com")
    assert refused.alert == alert
    assert words in str(refused)


def test_a_client_cannot_pose_as_a_server(ca: Made) -> None:
    refused = server_rejection(ca, make_leaf(ca, sans=SERVER_SANS), "tunnel.example.com")
    assert refused.alert == verify.UNSUPPORTED_CERTIFICATE


def test_a_server_of_another_ca_is_refused(ca: Made) -> None:
    for stranger in (make_leaf(make_ca("x"), usage=SERVER_AUTH, sans=SERVER_SANS), make_leaf(None, usage=SERVER_AUTH)):
        assert server_rejection(ca, stranger, "tunnel.example.com").alert == verify.UNKNOWN_CA


@pytest.mark.parametrize("name", ["", "a b", "-", "x" * 300, "ö.example", "*.example.com"])
def test_a_name_that_is_none_is_refused_and_raises_nothing_else(ca: Made, name: str) -> None:
    server_rejection(ca, make_leaf(ca, usage=SERVER_AUTH, sans=SERVER_SANS), name)
