"""``deployment``: daemons on one engine. A test that uses it runs once for each, or as its mark ``engines`` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Deployment

ENGINES = ("aioquic", "native")
LOG_TAIL_CHARS = 8_000


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "engines(*names): what the daemons of this integration test run, each in turn; a server-client pair has a "
        'hyphen, and "auto" is for tests in which the engine plays no part',
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("engine", [_parameter(name) for name in (marker.args if marker else ENGINES)])


def _parameter(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.native if "native" in name else ())


@pytest.fixture
def deployment(tmp_path: Path, engine: str) -> Iterator[Deployment]:
    made = Deployment(tmp_path, engine)
    yield made
    made.close()
    for daemon in made.daemons:  # shown where the test fails
        print(f"--- {daemon.log_path.name}\n{daemon.log[-LOG_TAIL_CHARS:]}")
