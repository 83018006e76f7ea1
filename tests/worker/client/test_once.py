from __future__ import annotations

import pytest

from qmux.worker.client.failures import CERTIFICATE, CONDITION, FAILED, UNREACHABLE, Failure
from qmux.worker.client.once import Once


def failure(exit_code: int) -> Failure:
    return Failure("kind", "text", exit_code)


def test_there_is_hope_until_every_way_has_failed() -> None:
    once = Once()
    assert once.failed("a", failure(UNREACHABLE), ["a", "b"]) is None
    assert once.failed("a", failure(UNREACHABLE), ["a", "b"]) is None
    assert once.failed("b", failure(UNREACHABLE), ["a", "b"]) == UNREACHABLE


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ((UNREACHABLE, CERTIFICATE), CERTIFICATE),
        ((CONDITION, UNREACHABLE), CONDITION),
        ((CONDITION, CERTIFICATE), CERTIFICATE),
        ((CERTIFICATE, FAILED), FAILED),
        ((UNREACHABLE, UNREACHABLE), UNREACHABLE),
    ],
)
def test_a_server_that_does_not_answer_tells_least(codes: tuple[int, int], told: int) -> None:
    once = Once()
    assert once.failed("a", failure(codes[0]), ["a", "b"]) is None
    assert once.failed("b", failure(codes[1]), ["a", "b"]) == told


def test_the_newest_failure_of_a_way_counts() -> None:
    once = Once()
    once.failed("a", failure(CERTIFICATE), ["a", "b"])
    once.failed("a", failure(UNREACHABLE), ["a", "b"])
    assert once.failed("b", failure(CONDITION), ["a", "b"]) == CONDITION


def test_a_name_that_turns_into_addresses_is_no_way_any_more() -> None:
    once = Once()
    assert once.failed("name", failure(UNREACHABLE), ["name", "b"]) is None
    assert once.failed("b", failure(UNREACHABLE), ["address", "b"]) is None
    assert once.failed("address", failure(UNREACHABLE), ["address", "b"]) == UNREACHABLE


def test_an_answer_wipes_out_what_failed_before() -> None:
    once = Once()
    once.failed("a", failure(CERTIFICATE), ["a", "b"])
    once.reached()
    assert once.failed("b", failure(UNREACHABLE), ["a", "b"]) is None
