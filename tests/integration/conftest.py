"""Deployments of daemons: one for a test, or one that the tests of a module share, on the engines that a mark names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Deployment

ENGINES = ("auto",)
REST = ("aioquic",)
LOG_TAIL_CHARS = 8_000

_running: list[Deployment] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "engines(*names, extended=()): what the daemons of this integration test run, each in turn; a server-client "
        'pair has a hyphen; "auto" is the native engine where it is built. Those of `extended` run in make test-all '
        f"only. Without this mark: {', '.join(ENGINES)}, and extended {', '.join(REST)}",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        names = marker.args if marker else ENGINES
        rest = marker.kwargs.get("extended", ()) if marker else REST
        found = [(name, []) for name in names] + [(name, [pytest.mark.extended]) for name in rest]
        metafunc.parametrize("engine", [_parameter(metafunc, *each) for each in found], scope="module")


def _parameter(metafunc: pytest.Metafunc, name: str, marks: list[pytest.MarkDecorator]) -> object:
    if "native" in name:
        marks.append(pytest.mark.native)
    is_shared = "shared" in metafunc.fixturenames
    return pytest.param(name, marks=marks, id=f"<{name}>" if is_shared else name)  # <…>: see tests/schedule.py


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that fails shows what the daemons said."""
    report = yield
    if report.failed:
        for daemon in (daemon for deployment in _running for daemon in deployment.daemons):
            report.sections.append((f"{daemon.log_path.name}", daemon.log[-LOG_TAIL_CHARS:]))
    return report


@pytest.fixture
def deployment(tmp_path: Path, engine: str) -> Iterator[Deployment]:
    """For this test alone."""
    yield from _deployment(tmp_path, engine)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Deployment]:
    """For all tests of a module on this engine: they find its daemons as they began, or say what they change."""
    yield from _deployment(tmp_path_factory.mktemp("shared"), engine)


def _deployment(directory: Path, engine: str) -> Iterator[Deployment]:
    made = Deployment(directory, engine)
    _running.append(made)
    try:
        yield made
    finally:
        _running.remove(made)
        made.close()
