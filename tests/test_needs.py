"""``needs``: a missing program skips a test, and fails it where CI is set."""

from __future__ import annotations

import pytest

from tests.conftest import needs

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
