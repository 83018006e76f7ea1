"""``at_pace``: what fails while the machine stands still is tried anew, and only that."""

from __future__ import annotations

import time

import pytest

TRIES = {"stood still": 0, "at pace": 0}


@pytest.mark.at_pace(0.05)
async def test_what_fails_where_the_loop_stood_still_is_tried_anew() -> None:
    TRIES["stood still"] += 1
    if TRIES["stood still"] < 3:
        time.sleep(0.2)  # noqa: ASYNC251 - the machine
        raise AssertionError("too late")


@pytest.mark.at_pace(30.0)
@pytest.mark.xfail(strict=True, raises=AssertionError)
async def test_what_fails_at_pace_fails() -> None:
    TRIES["at pace"] += 1
    assert TRIES["at pace"] > 1
