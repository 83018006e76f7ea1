from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.protocol import varint


# RFC 9000 §A.1: the sample encodings.
@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
    ],
)
def test_samples_of_the_rfc(encoded: str, value: int) -> None:
    assert varint.decode(bytes.fromhex(encoded)) == value
    assert varint.encode(value).hex() == encoded


def test_longer_than_necessary_decodes() -> None:
    assert varint.decode(bytes.fromhex("4025")) == 37


@given(st.integers(0, varint.MAX))
def test_round_trip(value: int) -> None:
    encoded = varint.encode(value)
    assert varint.length(encoded[0]) == len(encoded)
    assert varint.decode(encoded) == value


@pytest.mark.parametrize(("value", "size"), [(0, 1), (63, 1), (64, 2), (16_383, 2), (16_384, 4), ((1 << 30), 8)])
def test_shortest_form(value: int, size: int) -> None:
    assert len(varint.encode(value)) == size


@pytest.mark.parametrize("value", [-1, varint.MAX + 1])
def test_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        varint.encode(value)
