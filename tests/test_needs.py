"""``needs`` and ``native``: what is missing skips a test, and fails it where CI is set."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.conftest import needs, needs_native

MISSING = "no-such-program-of-qmux"


@pytest.mark.needs("sh")
def test_a_program_that_is_there_runs_the_test() -> None:
    needs("sh")


def test_a_missing_program_skips_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"not installed: {MISSING} "):
        needs("sh", MISSING)


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=f"not installed: {MISSING} "):
        needs("sh", MISSING)


def test_the_marker_does_the_same(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    request.node.add_marker(pytest.mark.needs(MISSING))
    with pytest.raises(pytest.skip.Exception):
        request.config.hook.pytest_runtest_setup(item=request.node)


@pytest.mark.parametrize(
    ("is_built", "ci", "cargo", "outcome"),
    [
        (True, "true", None, None),
        (False, "", "/usr/bin/cargo", pytest.skip.Exception),
        (False, "true", None, pytest.skip.Exception),
        (False, "true", "/usr/bin/cargo", pytest.fail.Exception),
    ],
)
def test_a_missing_native_engine_fails_only_in_ci_with_cargo(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, ci: str, cargo: str | None, outcome: type[BaseException] | None
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_built else None)
    monkeypatch.setattr(shutil, "which", lambda name: cargo)
    if outcome is None:
        needs_native()
    else:
        with pytest.raises(outcome, match="qmux_native is not built"):
            needs_native()


def test_the_marker_of_the_native_engine_does_the_same(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    request.node.add_marker(pytest.mark.native)
    with pytest.raises(pytest.skip.Exception):
        request.config.hook.pytest_runtest_setup(item=request.node)
