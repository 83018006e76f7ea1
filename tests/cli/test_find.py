"""Which daemon a command means. Daemons are played by a lock that this test holds, as a supervisor would."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qmux.cli import find
from qmux.config import directories
from qmux.config.load import load
from qmux.errors import ConfigError, UnreachableError, UsageError
from qmux.pki import authority

Start = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes a daemon of this user, running or not."""
    base = tmp_path / "base"
    monkeypatch.setattr(directories, "base_dir", lambda: base)
    with ExitStack() as stack:

        def make(source: str, role: str = "server", *, running: bool = True, at: Path | None = None) -> Path:
            directory = at or base / directories.name_of(role, source)
            directory.mkdir(parents=True)
            facts = {"role": role, "pid": 4711, "source": source, "admin_socket": str(directory / "admin.sock")}
            (directory / "daemon.json").write_text(json.dumps(facts))
            lock = stack.enter_context((directory / "lock").open("w"))
            if running:
                fcntl.flock(lock, fcntl.LOCK_EX)
            return directory

        yield make


def test_the_only_one_that_runs_is_meant(start: Start) -> None:
    start("/etc/qmux/old.toml", running=False)
    directory = start("/etc/qmux/server.toml")
    assert find.admin_socket(None, None) == directory / "admin.sock"


def test_several_are_listed_by_name(start: Start) -> None:
    start("/etc/qmux/server.toml")
    start("qmuxc web=127.0.0.1:3000", "client")
    with pytest.raises(UsageError) as caught:
        find.admin_socket(None, None)
    assert str(caught.value).splitlines() == [
        "2 daemons run; name one with -c FILE or --socket PATH:",
        "  server  pid 4711     /etc/qmux/server.toml",
        "  client  pid 4711     qmuxc web=127.0.0.1:3000",
    ]


def test_a_running_daemons_file_need_not_be_readable(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a systemd credential is not for ``ExecReload``: not even its directory can be entered."""
    path = Path("/run/credentials/qmuxd.service/server.toml")
    directory = start(str(path))
    monkeypatch.setattr(directories, "running_dirs", lambda: [directory])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", refuse)
    monkeypatch.setattr("qmux.config.document.read_document", refuse)
    assert find.admin_socket(path, None) == directory / "admin.sock"
    with pytest.raises(UsageError, match=r"other\.toml: permission denied; name the daemon with --socket PATH instead"):
        find.admin_socket(path.with_name("other.toml"), None)


def test_none_says_what_to_do(start: Start) -> None:
    start("/etc/qmux/server.toml", running=False)
    with pytest.raises(UnreachableError, match="no daemon of this user runs; start one"):
        find.admin_socket(None, None)


def test_a_daemon_that_is_starting_is_not_there_yet(start: Start) -> None:
    (start("/etc/qmux/server.toml") / "daemon.json").write_text("{")
    with pytest.raises(UnreachableError):
        find.admin_socket(None, None)


def test_a_file_names_its_daemon_even_with_an_error_in_it(start: Start, tmp_path: Path) -> None:
    start("/etc/qmux/other.toml")
    broken = tmp_path / "server.toml"
    broken.write_text("[server")
    directory = start(str(broken))
    assert find.admin_socket(broken, None) == directory / "admin.sock"


def test_a_file_may_name_a_runtime_directory_of_its_own(start: Start, tmp_path: Path) -> None:
    authority.init(tmp_path)
    authority.issue_server(tmp_path, ["localhost"])
    config = tmp_path / "server.toml"
    config.write_text('[server]\nbundle = "localhost.pem"\nruntime_dir = "run/me"\n[services.a]\nbind = ":80"\n')
    with pytest.raises(UnreachableError, match=r"server\.toml: no daemon runs with this configuration"):
        find.admin_socket(config, None)
    start(str(config), at=tmp_path / "run" / "me")
    assert find.admin_socket(config, None) == tmp_path / "run" / "me" / "admin.sock"
    config.write_text(config.read_text().replace("bundle", "bundel") + "idle_timeout = 30\n")
    assert find.admin_socket(config, None) == tmp_path / "run" / "me" / "admin.sock"


def test_the_place_is_where_the_daemon_puts_it(start: Start, tmp_path: Path) -> None:
    authority.init(tmp_path)
    authority.issue_server(tmp_path, ["localhost"])
    for runtime_dir in ("", 'runtime_dir = "x/../y"', 'runtime_dir = "/z"'):
        config = tmp_path / "server.toml"
        config.write_text(f'[server]\nbundle = "localhost.pem"\n{runtime_dir}\n[services.a]\nbind = ":80"\n')
        assert find._directory_of(config) == directories.runtime_dir(load(config).config)
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        (tmp_path / "conf.d" / "a.toml").write_text(config.read_text().replace("localhost.pem", "../localhost.pem"))
        assert find._directory_of(tmp_path / "conf.d") == directories.runtime_dir(load(tmp_path / "conf.d").config)


def test_a_file_that_is_not_there_or_not_right_says_so(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        find.admin_socket(tmp_path / "nowhere.toml", None)
    (tmp_path / "broken.toml").write_text("[server")
    with pytest.raises(ConfigError):
        find.admin_socket(tmp_path / "broken.toml", None)


def test_a_socket_is_taken_as_it_is_and_alone(start: Start) -> None:
    start("/etc/qmux/server.toml")
    assert find.admin_socket(None, Path("/x.sock")) == Path("/x.sock")
    with pytest.raises(UsageError, match="exclude each other"):
        find.admin_socket(Path("a"), Path("b"))
