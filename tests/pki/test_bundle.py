"""Reading bundles: the parts in any order, and each thing that can be missing."""

from __future__ import annotations

import itertools

import pytest

from qmux.errors import CertificateError
from qmux.pki.bundle import parse, split_bundle
from tests.pki.made import make_ca, make_leaf

CA = make_ca("root")
MIDDLE = make_ca("middle", CA, path_length=0)
LEAF = make_leaf(MIDDLE)


def test_the_parts_may_stand_in_any_order_but_the_chain() -> None:
    for order in itertools.permutations([LEAF.pem + MIDDLE.pem, LEAF.key_pem, CA.pem]):
        parts = split_bundle(b"a comment\n" + b"\n".join(order), "x.pem")
        bundle = parse(*parts, "x.pem")
        assert bundle.leaf == LEAF.certificate
        assert bundle.chain == (LEAF.certificate, MIDDLE.certificate)
        assert bundle.ca == (CA.certificate,)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not PEM"),
        (b"\x30\x82", "is not PEM"),
        (LEAF.key_pem, "has no certificate"),
        (LEAF.key_pem + CA.pem, "has no certificate"),
        (LEAF.pem + CA.pem, "has 0 private keys"),
        (LEAF.pem + LEAF.key_pem + CA.key_pem + CA.pem, "has 2 private keys"),
        (LEAF.pem + LEAF.key_pem, "has no CA certificate"),
        (LEAF.pem.replace(b"MII", b"xxx") + LEAF.key_pem + CA.pem, "a certificate cannot be read"),
    ],
)
def test_what_is_missing_is_named_with_the_file(data: bytes, words: str) -> None:
    with pytest.raises(CertificateError, match=words) as caught:
        split_bundle(data, "x.pem")
    assert str(caught.value).startswith("x.pem: ")


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(CertificateError, match=r"x\.pem: the private key does not belong to the certificate"):
        parse(LEAF.pem, CA.key_pem, CA.pem, "x.pem")


def test_a_key_that_cannot_be_read_is_refused_and_not_shown() -> None:
    broken = LEAF.key_pem.replace(b"MIG", b"xxx")
    with pytest.raises(CertificateError, match="the private key cannot be read") as caught:
        parse(LEAF.pem, broken, CA.pem, "x.pem")
    assert broken.splitlines()[1].decode() not in str(caught.value)
