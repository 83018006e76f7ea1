from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from qmux.bus import MAX_MESSAGE_BYTES
from qmux.pool.chunks import BYTES_PER_CHUNK, ROWS_PER_CHUNK, chunks, size_of
from qmux.pool.rows import Offer, Pass, Row
from qmux.protocol.values import MAX_NAME, MAX_SERVICES
from tests.pool.examples import row

texts = st.text(st.characters(codec="utf-8"), max_size=40)
integers = st.integers(0, (1 << 53) - 1)
any_row = st.builds(
    Row,
    key=integers,
    tenant=texts,
    principal=texts,
    session=st.binary(min_size=16, max_size=16),
    instance=texts,
    offers=st.lists(
        st.builds(Offer, st.text("abc.-", min_size=1, max_size=MAX_NAME), st.integers(1, 256), st.booleans())
    ).map(tuple),
    state=st.sampled_from(["ready", "suspect", "draining"]),
    active=integers,
    active_here=integers,
    active_total=integers,
    active_at_ms=integers,
    address=texts,
    rtt_ms=st.floats(0, 1e6),
    connected_at_ms=integers,
    not_after=integers,
)


def largest_row(key: int) -> Row:
    """What the protocol lets a client make us store at most."""
    offers = tuple(Offer(f"{number:03}".ljust(MAX_NAME, "x"), 256, True) for number in range(MAX_SERVICES))
    return row(key, "é" * 64, instance="é" * MAX_NAME, offers=offers)


@given(any_row)
def test_the_estimate_is_never_too_small(each: Row) -> None:
    assert len(msgspec.msgpack.encode(each)) <= size_of(each)


@given(st.lists(any_row, max_size=20))
def test_nothing_is_lost_or_moved(rows: list[Row]) -> None:
    assert [each for chunk in chunks(rows) for each in chunk] == rows


def test_usual_rows_go_by_number() -> None:
    sizes = [len(chunk) for chunk in chunks(row(key) for key in range(600))]
    assert sizes == [ROWS_PER_CHUNK, ROWS_PER_CHUNK, 600 - 2 * ROWS_PER_CHUNK]


def test_large_rows_go_by_size_and_fit_on_the_bus() -> None:
    portions = list(chunks(largest_row(key) for key in range(100)))
    assert sum(map(len, portions)) == 100
    for portion in portions:
        message = Pass(1, 1, 0, 1 << 62, tuple(portion), {"x" * MAX_NAME: 1 << 40})
        size = len(msgspec.msgpack.encode(message))
        assert size <= BYTES_PER_CHUNK + 4096 < MAX_MESSAGE_BYTES


def test_no_rows() -> None:
    assert list(chunks([])) == []
