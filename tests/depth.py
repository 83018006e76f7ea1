"""How far property tests search: a short way in ``make test``, the whole way in ``make test-all``."""

from __future__ import annotations

import os

from hypothesis import settings

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
QUICK_PART = 5
"""``make test`` draws a fifth of the examples."""


def examples(deep: int) -> int:
    """``max_examples`` of a test that draws ``deep`` of them in ``make test-all``."""
    return deep if DEEP else deep // QUICK_PART


def load_profile() -> None:
    """Set the number of examples of tests that give none; before a module of tests is imported."""
    settings.register_profile("qmux", max_examples=examples(100), deadline=None)
    settings.load_profile("qmux")
