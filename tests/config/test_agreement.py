"""What the check of a file says is what the daemon does: both sides of one rule, side by side."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmux.config.directories import LONGEST_SOCKET
from qmux.config.schema import ProcessConfig, TlsFiles
from qmux.errors import StartError
from supervisor.privileges import Owner, owner_of
from supervisor.runtime import RuntimeDir

ME = Owner(os.geteuid(), os.getegid(), drops=False)
Problems = Callable[[str], list[str]]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for any length that a test wants."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def server(lines: str) -> str:
    return f'[server]\nbundle = "server.pem"\n{lines}\n[services.a]\nbind = ":80"\n'


@pytest.mark.parametrize(("length", "fits"), [(90, True), (91, True), (96, True), (97, False)])
def test_the_longest_runtime_directory(problems: Problems, short_path: Path, length: int, fits: bool) -> None:
    path = short_path / ("x" * (length - len(str(short_path)) - 1))
    found = problems(server(f'runtime_dir = "{path}"'))
    assert (found == []) is fits, found
    if fits:
        runtime = RuntimeDir(path, ME, 0)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path / LONGEST_SOCKET))
        runtime.close()
    else:
        assert "97 bytes; at most 96" in found[0]
        with pytest.raises(StartError, match="97 bytes; at most 96; set a shorter runtime_dir"):
            RuntimeDir(path, ME, 0)


def test_a_default_runtime_directory_that_is_too_long(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmux.config.directories.base_dir", lambda: Path(f"/{'x' * 90}"))
    assert ["runtime_dir: not set, and the default is too long" in line for line in problems(server(""))] == [True]


@pytest.mark.parametrize(
    ("user", "group", "fits"),
    [
        ("nobody", "", True),
        ("65534", "", True),
        ("65534", "4242", True),
        ("", "4242", True),
        ("no-such-user", "", False),
        ("4242424", "", False),
        ("", "no-such-group", False),
        ("", "4294967295", False),
        ("", "99999999999999999999", False),
        ("²", "", False),
    ],
)
def test_users_and_groups(
    problems: Problems, monkeypatch: pytest.MonkeyPatch, user: str, group: str, fits: bool
) -> None:
    keys = {"user": user, "group": group}
    found = problems(server("\n".join(f'{key} = "{value}"' for key, value in keys.items() if value)))
    assert (found == []) is fits, found
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    process = ProcessConfig(tls=TlsFiles(), user=user, group=group)
    if fits:
        assert owner_of(process, "server").drops
    else:
        with pytest.raises(StartError) as caught:
            owner_of(process, "server")
        assert str(caught.value) in found[0].partition(": ")[2]
