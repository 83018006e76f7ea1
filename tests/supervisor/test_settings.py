"""The times that tests set in a real daemon; read strictly."""

from __future__ import annotations

import pytest

from qmux.errors import StartError
from qmux.messages import TIMINGS_VARIABLE, Timings
from supervisor.settings import Settings, from_environment


def test_a_daemon_in_service_has_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TIMINGS_VARIABLE, raising=False)
    assert from_environment() == Settings()


def test_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMINGS_VARIABLE, '{"duplicate_look_s": 2}')
    assert from_environment().timings == Timings(duplicate_look_s=2.0)


@pytest.mark.parametrize("text", ["", "2", '{"duplicate_look": 2}', '{"stable_s": "long"}'])
def test_what_is_no_timings_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(TIMINGS_VARIABLE, text)
    with pytest.raises(StartError, match=TIMINGS_VARIABLE):
        from_environment()
