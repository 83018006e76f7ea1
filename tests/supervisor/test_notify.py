from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from supervisor import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind("\0" + address[1:] if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready("serving")
        assert sock.recv(1000) == b"READY=1\nSTATUS=serving"
        notify.reloading()
        assert sock.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        notify.alive()
        assert sock.recv(1000) == b"WATCHDOG=1"
        notify.stopping("3 connections")
        assert sock.recv(1000) == b"STOPPING=1\nSTATUS=3 connections"


def test_a_dead_systemd_is_only_worth_a_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    notify.ready("serving")
    assert "cannot notify systemd" in caplog.text


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready("serving")
    assert not caplog.records


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected_s"),
    [("3000000", None, 3.0), ("3000000", "own", 3.0), ("3000000", "1", None), ("0", None, None), ("x", None, None)],
)
def test_how_often_systemd_wants_to_hear(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str | None, expected_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert notify.watchdog_s() == expected_s
