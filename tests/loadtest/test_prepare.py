"""What is installed for a load test, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import prepare
from loadtest.system import StartFailed


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """With an empty cache, an empty PATH, and nothing to install from packages."""
    monkeypatch.setattr(prepare, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(prepare, "TOOLS", Path("/bin/true"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return []


def cargo(folder: Path, script: str) -> None:
    path = folder / "cargo"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_was_built_is_not_built_again(said: list[str], tmp_path: Path) -> None:
    cargo(tmp_path, "exit 1")
    (tmp_path / "cache" / "bin").mkdir(parents=True)
    (tmp_path / "cache" / "bin" / "rathole").touch()
    prepare.prepare(said.append)
    assert said == []


def test_without_cargo_rathole_is_left_out(said: list[str]) -> None:
    prepare.prepare(said.append)
    assert said == ["rathole is left out: no cargo to build it with (https://rustup.rs)"]


def test_it_is_built_into_the_cache(said: list[str], tmp_path: Path) -> None:
    cargo(tmp_path, f'echo "$@" > {tmp_path}/called')
    prepare.prepare(said.append)
    called = (tmp_path / "called").read_text()
    assert called.startswith(f"install rathole --version {prepare.RATHOLE} ")
    assert f"--root {tmp_path}/cache" in called


def test_a_build_that_fails_says_why(said: list[str], tmp_path: Path) -> None:
    cargo(tmp_path, "echo 'error: no linker' >&2; exit 101")
    with pytest.raises(StartFailed, match="no linker"):
        prepare.prepare(said.append)
