"""Which engine is taken, and what is said where the native one cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmux import __version__
from qmux.errors import StartError
from qmux.quic.choose import load_engine

OLD = '__version__ = "0.0.7"\n'
BROKEN = "raise ImportError('GLIBC_2.99 not found')\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose ``qmux_native.py`` is the one that is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    real = sys.modules.pop("qmux_native", None)
    yield tmp_path
    sys.modules.pop("qmux_native", None)
    if real is not None:
        sys.modules["qmux_native"] = real


@pytest.mark.parametrize(
    ("module", "words"),
    [(OLD, f"qmux_native 0.0.7 is installed, this is QMux {__version__}"), (BROKEN, "GLIBC_2.99 not found")],
    ids=["another release", "another machine"],
)
def test_a_native_engine_that_cannot_be_used(
    install: Path, module: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (install / "qmux_native.py").write_text(module)
    with pytest.raises(StartError, match=words):
        load_engine("native")
    sys.modules.pop("qmux_native", None)
    assert load_engine("auto").name == "aioquic"
    assert words in str(caplog.records[-1].__dict__["reason"])


def test_no_native_engine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match="not installed"):
        load_engine("native")
    assert load_engine("auto").name == "aioquic"
    assert not caplog.records, "nobody who runs without it has to read about it"


def test_aioquic_where_it_is_asked_for(install: Path) -> None:
    (install / "qmux_native.py").write_text(BROKEN)
    assert load_engine("aioquic").name == "aioquic"
    assert "qmux_native" not in sys.modules


@pytest.mark.native
def test_native_where_it_is_built() -> None:
    pytest.importorskip("qmux_native")
    assert load_engine("auto").name == load_engine("native").name == "native"
