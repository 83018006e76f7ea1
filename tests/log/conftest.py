from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.log.made import logging_restored


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with logging_restored():
        yield
