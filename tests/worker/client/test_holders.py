from __future__ import annotations

import asyncio

from qmux.worker.client.holders import Holders
from qmux.worker.signal import ChangeSignal

ONE, OTHER = b"1" * 16, b"2" * 16


async def test_the_first_that_registered_holds_the_server() -> None:
    holders: Holders[str] = Holders(ChangeSignal())
    assert holders.holder(ONE) is None
    assert holders.claim(ONE, "first") == "first"
    assert holders.claim(ONE, "second") == "first"
    assert holders.claim(ONE, "first") == "first"
    assert holders.holder(ONE) == "first"


async def test_a_link_holds_one_server() -> None:
    """A restarted server has another ID, and so has another server at this address."""
    holders: Holders[str] = Holders(ChangeSignal())
    holders.claim(ONE, "first")
    assert holders.claim(OTHER, "first") == "first"
    assert holders.holder(ONE) is None
    assert holders.claim(ONE, "second") == "second"


async def test_a_release_wakes_those_who_wait_for_a_server() -> None:
    holders: Holders[str] = Holders(ChangeSignal())
    holders.claim(ONE, "first")
    waiting = asyncio.ensure_future(holders.until_released(30.0))
    await asyncio.sleep(0)
    holders.claim(OTHER, "second")
    holders.release("third")  # holds nothing
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    holders.release("first")
    await waiting
    assert holders.holder(ONE) is None
    assert holders.holder(OTHER) == "second"


async def test_waiting_for_a_release_ends_without_one() -> None:
    holders: Holders[str] = Holders(ChangeSignal())
    holders.claim(ONE, "first")
    await holders.until_released(0.01)
    assert holders.holder(ONE) == "first"
