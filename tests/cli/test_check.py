"""``qmux check``: all files, all errors, one answer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from qmux.cli import machine
from qmux.config.load import load
from qmux.errors import ConfigError
from qmux.pki import authority
from tests.cli.programs import run

GOOD = '[server]\nbundle = "localhost.pem"\n[services.web]\nbind = ":80"\n'
BAD = '[server]\nbundle = "localhost.pem"\n[services.web]\nbind = ":80"\nidle_timeout = 30\nballance = "x"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority.init(tmp_path)
    authority.issue_server(tmp_path, ["localhost"])
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    return tmp_path


def test_every_error_of_every_file_and_the_good_ones_too(folder: Path) -> None:
    done = run("qmux", "check", "bad.toml", "good.toml", "nowhere.toml", cwd=folder)
    assert done.returncode == 3
    assert done.stdout == "good.toml: ok\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("bad.toml:5: services.web.idle_timeout = 30: ")
    assert lines[1].startswith("bad.toml:6: services.web.ballance")
    assert lines[2] == "2 errors in bad.toml"
    assert lines[-1] == "1 error in nowhere.toml"


def test_a_directory_is_one_configuration(folder: Path) -> None:
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "1.toml").write_text('[server]\nbundle = "../localhost.pem"\n')
    (folder / "conf.d" / "2.toml").write_text('[services.web]\nbind = ":80"\n')
    assert run("qmux", "check", "conf.d", cwd=folder).stdout == "conf.d: ok\n"


def test_json_says_the_same(folder: Path) -> None:
    done = run("qmux", "check", "--json", "bad.toml", "good.toml", cwd=folder)
    assert (done.returncode, done.stderr) == (3, "")
    bad, good = json.loads(done.stdout)
    assert (bad["file"], bad["ok"], len(bad["errors"])) == ("bad.toml", False, 2)
    assert good == {"file": "good.toml", "ok": True, "errors": [], "warnings": []}


def test_an_engine_that_cannot_run_here_is_found(folder: Path) -> None:
    (folder / "qmux_native.py").write_text('__version__ = "0.0.7"')
    env = {"PYTHONPATH": str(folder)}
    (folder / "native.toml").write_text(GOOD.replace("[services", 'engine = "native"\n[services', 1))
    for arguments in (("qmux", "check", "native.toml"), ("qmuxd", "-c", "native.toml", "--check")):
        done = run(*arguments, cwd=folder, env=env)
        assert (done.returncode, done.stdout) == (3, "")
        assert 'engine = "native": qmux_native 0.0.7 is installed, this is QMux' in done.stderr
        assert "1 error in " in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_that_cannot_run_qmux_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the interpreter is what "nobody" cannot enter: a copy of the path below a 0700 directory."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy("/bin/true", closed / "python")
    (folder / "nobody.toml").write_text(GOOD.replace("[services", 'user = "nobody"\n[services', 1))
    monkeypatch.setattr(sys, "executable", str(closed / "python"))
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=r"nobody.toml: server.user \(uid \d+\) cannot run .*/closed/python"):
        machine.check(load(Path("nobody.toml")), "nobody.toml")


def test_without_a_file_it_is_wrong_usage() -> None:
    assert run("qmux", "check").returncode == 2
