from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qmux.config.load import load
from qmux.config.loaded import Loaded
from qmux.errors import ConfigError
from qmux.pki import authority


@pytest.fixture(scope="session")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``ca.pem``, ``ca.key``, ``server.pem`` and ``client.pem`` (services a, b, web)."""
    directory = tmp_path_factory.mktemp("pki")
    authority.init(directory)
    authority.issue_server(directory, ["tunnel.example.com", "127.0.0.1"]).rename(directory / "server.pem")
    authority.issue_client(directory, "client", ["a", "b", "web"])
    return directory


@pytest.fixture
def place(tmp_path: Path, issued: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``server.pem`` and ``client.pem`` in it."""
    for name in ("server.pem", "client.pem"):
        shutil.copy(issued / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load_text(place: Path) -> Callable[[str], Loaded]:
    """Load this text as ``x.toml``."""

    def load_it(text: str) -> Loaded:
        (place / "x.toml").write_text(text)
        return load(Path("x.toml"))

    return load_it


@pytest.fixture
def problems(load_text: Callable[[str], Loaded]) -> Callable[[str], list[str]]:
    """The problems of this text, without the file's name; none where it loads."""

    def problems_of(text: str) -> list[str]:
        try:
            load_text(text)
        except ConfigError as error:
            return [problem.removeprefix("x.toml:") for problem in error.problems]
        return []

    return problems_of
