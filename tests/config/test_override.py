from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qmux.config.load import load
from qmux.config.loaded import Loaded
from qmux.config.override import with_overrides
from qmux.errors import UsageError


@pytest.fixture
def loaded(place: Path) -> Loaded:
    Path("x.toml").write_text('[server]\nbundle = "server.pem"\nworkers = 3\n[services.web]\nbind = ":80"\n')
    return load(Path("x.toml"))


def test_what_is_not_said_stays(loaded: Loaded) -> None:
    assert with_overrides(loaded) == loaded


def test_what_is_said_wins(loaded: Loaded) -> None:
    changed = with_overrides(loaded, workers=5, engine="aioquic", log_level="debug", log_format="json").config
    assert (changed.process.workers, changed.process.engine) == (5, "aioquic")
    assert (changed.log.level, changed.log.format) == ("debug", "json")
    assert with_overrides(loaded, workers="auto").config.process.workers is None
    assert loaded.config.process.workers == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"workers": 0}, '--workers 0: write a number from 1 to 256, or "auto"'),
        ({"workers": 257}, "--workers 257"),
        ({"engine": "quic"}, "--engine quic: choose one of auto, aioquic, native"),
        ({"log_level": "loud"}, "--log-level loud: choose one of debug, info, warning, error"),
        ({"log_format": "xml"}, "--log-format xml: choose one of human, json"),
    ],
)
def test_wrong_usage(loaded: Loaded, override: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        with_overrides(loaded, **override)
