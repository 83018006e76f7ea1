"""The configuration may not promise what the protocol cannot carry; the layers forbid importing its limits there."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest

from qmux.config import addresses, client, limits, schema, services
from qmux.protocol import values


def test_limits_are_those_of_the_protocol() -> None:
    assert services.MAX_SERVICES <= values.MAX_SERVICES
    assert schema.MAX_WEIGHT <= values.MAX_WEIGHT
    assert client.MAX_INSTANCE <= values.MAX_NAME
    assert schema.MAX_LANES <= values.MAX_LANES_TOLD
    assert schema.MAX_STREAMS <= 1 << 20
    assert schema.MAX_TIMEOUT_S * 1000 <= values.MAX_DURATION_MS
    assert schema.MAX_QUIC_IDLE_S * 1000 <= values.MAX_DURATION_MS


def test_the_longest_unix_path_is_what_the_kernel_takes() -> None:
    for length, fits in ((addresses.MAX_UNIX_PATH_BYTES, True), (addresses.MAX_UNIX_PATH_BYTES + 1, False)):
        path = "/tmp/" + "x" * (length - len("/tmp/"))
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match=r"too long|No such file") as caught:
            sock.connect(path)
        assert ("too long" not in str(caught.value)) is fits


@pytest.mark.parametrize("version", [1, 2])
def test_the_pids_limit_is_named(tmp_path: Path, version: int) -> None:
    top = tmp_path / "pids" if version == 1 else tmp_path
    (top / "a").mkdir(parents=True)
    (top / "a" / "pids.max").write_text("max\n")
    (top / "a" / "pids.current").write_text("3\n")
    (tmp_path / "membership").write_text("7:pids:/a\n" if version == 1 else "0::/a\n")
    assert limits.tasks_left(tmp_path, tmp_path / "membership") is None
    (top / "pids.max").write_text("30\n")
    (top / "pids.current").write_text("29\n")
    assert limits.tasks_left(tmp_path, tmp_path / "membership") == 1
    said = limits.of_tasks(tmp_path, tmp_path / "membership")
    assert said.startswith("the pids limit of this control group is 30 processes and threads, 29 are used; raise Tasks")


def test_the_users_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    assert limits.of_tasks(tmp_path, tmp_path / "none").startswith("this user may have 50 processes and threads; raise")
