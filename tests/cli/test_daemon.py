"""What ``qmuxd`` and ``qmuxc`` make of their arguments, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmux.pki import authority
from tests.cli.programs import run

SERVER = '[server]\nbundle = "localhost.pem"\n[services.web]\nbind = "127.0.0.1:80"\n'
CLIENT = '[client]\nservers = ["localhost"]\nbundle = "pod-1.pem"\n[services.web]\ntarget = "127.0.0.1:3000"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("daemon")
    authority.init(path)
    authority.issue_server(path, ["localhost"])
    authority.issue_client(path, "pod-1", ["web"])
    (path / "server.toml").write_text(SERVER)
    (path / "client.toml").write_text(CLIENT)
    return path


def test_check_says_ok_and_starts_nothing(folder: Path) -> None:
    done = run("qmuxd", "-c", folder / "server.toml", "--check")
    assert (done.returncode, done.stdout) == (0, f"{folder}/server.toml: ok\n")


@pytest.mark.parametrize(("program", "file"), [("qmuxd", "server.toml"), ("qmuxc", "client.toml")])
def test_without_a_file_it_takes_the_one_here_and_says_so(folder: Path, program: str, file: str) -> None:
    done = run(program, "--check", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == f"using {folder}/{file}\n"


@pytest.mark.parametrize(("program", "file"), [("qmuxd", "server.toml"), ("qmuxc", "client.toml")])
def test_the_file_may_be_an_argument(folder: Path, program: str, file: str) -> None:
    done = run(program, file, "--check", cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"{folder}/{file}: ok\n"), done.stderr
    done = run(program, file, "-c", "other.toml", "--check", cwd=folder)
    assert done.returncode == 2
    assert f"2 configurations ({file}, other.toml); name one" in done.stderr


@pytest.mark.parametrize(("program", "role"), [("qmuxd", "server"), ("qmuxc", "client")])
def test_without_any_file_it_says_where_it_looked(tmp_path: Path, program: str, role: str) -> None:
    if Path(f"/etc/qmux/{role}.toml").exists():
        pytest.skip("this machine has a QMux of its own")
    done = run(program, cwd=tmp_path)
    assert done.returncode == 2
    assert f"neither ./{role}.toml nor /etc/qmux/{role}.toml exists; write one with `qmux init {role}`" in done.stderr


def test_the_wrong_kind_of_file_names_the_right_program(folder: Path) -> None:
    done = run("qmuxd", "-c", folder / "client.toml", "--check")
    assert done.returncode == 3
    assert "qmuxc -c" in done.stderr
    done = run("qmuxc", "-c", folder / "server.toml", "--check")
    assert done.returncode == 3
    assert "qmuxd -c" in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "99999", ""])
def test_workers_is_auto_or_a_number(folder: Path, value: str) -> None:
    done = run("qmuxd", "-c", folder / "server.toml", "--check", "--workers", value)
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert run("qmuxd", "-c", folder / "server.toml", "--check", "--workers", "auto").returncode == 0


def test_a_broken_file_shows_every_error(folder: Path) -> None:
    (folder / "broken.toml").write_text(SERVER + 'ballance = "x"\nidle_timeout = 30\n')
    done = run("qmuxd", "-c", folder / "broken.toml")
    assert done.returncode == 3
    assert "broken.toml:5: services.web.ballance" in done.stderr
    assert "broken.toml:6: services.web.idle_timeout" in done.stderr
    assert done.stderr.rstrip().endswith(f"2 errors in {folder}/broken.toml")


def test_a_one_liner_is_a_whole_client(folder: Path) -> None:
    done = run("qmuxc", "web=127.0.0.1:3000", "--server", "localhost", "--bundle", folder / "pod-1.pem", "--check")
    assert done.returncode == 0
    assert done.stdout.startswith("qmuxc web=127.0.0.1:3000 --server localhost --bundle ")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["web=1.2.3.4:5"], 2, "which server? --server HOST[:PORT] names it"),
        (["web=1.2.3.4:5", "--server", "x"], 2, "which certificate? --bundle FILE"),
        (["--server", "x", "--bundle", "pod-1.pem"], 2, "which service?"),
        (["web", "--server", "x", "--bundle", "pod-1.pem"], 2, '"web"'),
        (["web=1.2.3.4:5", "-c", "client.toml"], 2, "client.toml and NAME=TARGET, --server, --bundle exclude each"),
        (["web=1.2.3.4:5", "client.toml"], 2, "client.toml and NAME=TARGET, --server, --bundle exclude each other"),
        (["web=1.2.3.4:5", "--server", "x", "--bundle", "nowhere.pem"], 3, "nowhere.pem"),
        (["api=1.2.3.4:5", "--server", "x", "--bundle", "localhost.pem"], 3, "--bundle localhost.pem"),
    ],
)
def test_a_one_liner_that_lacks_something_says_what(folder: Path, words: list[str], code: int, line: str) -> None:
    done = run("qmuxc", *words, "--check", cwd=folder)
    assert (done.returncode, line in done.stderr) == (code, True), done.stderr


def test_another_package_named_supervisor_is_told_apart(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").write_text("")
    done = run("qmuxd", "-c", folder / "server.toml", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 4
    assert "another package named supervisor is installed" in done.stderr
    assert "pipx install qmux" in done.stderr
