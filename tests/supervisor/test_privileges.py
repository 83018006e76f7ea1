from __future__ import annotations

import logging
import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from qmux.config.schema import ProcessConfig, TlsFiles
from qmux.errors import StartError
from supervisor.privileges import Owner, owner_of, try_interpreter, warn_of_root

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = pwd.getpwnam("nobody")


def wanted(user: str = "", group: str = "") -> ProcessConfig:
    return ProcessConfig(tls=TlsFiles(), user=user, group=group)


def test_without_a_user_nothing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        owner = owner_of(wanted(), "server")
        assert not caplog.records  # a start that fails need not say it
        warn_of_root(owner, "server")
    assert owner == Owner(os.geteuid(), os.getegid(), drops=False)
    assert owner.popen_arguments() == {}
    assert len(caplog.records) == (1 if os.geteuid() == 0 else 0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(StartError, match=r'client.user = "no-such-user": this machine has no such user; create it'):
        owner_of(wanted("no-such-user"), "client")
    with pytest.raises(StartError, match=r'server.group = "no-such-group"'):
        owner_of(wanted(group="no-such-group"), "server")


@ROOT_ONLY
def test_names_and_numbers() -> None:
    by_name = owner_of(wanted("nobody"), "server")
    assert by_name == Owner(NOBODY.pw_uid, NOBODY.pw_gid, drops=True)
    assert owner_of(wanted(str(NOBODY.pw_uid)), "server") == by_name
    assert owner_of(wanted("nobody", "0"), "server").gid == 0
    assert by_name.popen_arguments()["extra_groups"] == []


def test_only_root_can_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(StartError, match="only root can start workers as another user"):
        owner_of(wanted("nobody"), "server")


@ROOT_ONLY
def test_an_interpreter_out_of_reach_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copy(os.path.realpath(sys.executable), home / "python")
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    with pytest.raises(StartError, match="install QMux where every user may read"):
        try_interpreter(Owner(NOBODY.pw_uid, NOBODY.pw_gid, drops=True), "server")


@ROOT_ONLY
def test_a_directory_out_of_reach_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the interpreter: the real one may itself be out of reach here."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        base.chmod(0o755)
        (base / "python").write_text('#!/bin/sh\ncd "$4" || exit 77\n')
        (base / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(base / "python"))
        (base / "closed" / "run").mkdir(parents=True)
        (base / "closed").chmod(0o700)
        owner = Owner(NOBODY.pw_uid, NOBODY.pw_gid, drops=True)
        with pytest.raises(StartError, match="cannot enter it"):
            try_interpreter(owner, "server", str(base / "closed" / "run"))
        try_interpreter(owner, "server", "/")
