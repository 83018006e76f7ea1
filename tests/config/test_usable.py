from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from qmux.config import usable
from qmux.config.schema import ClientConfig, ProcessConfig, QuicConfig, ServerConfig, TlsFiles

PROCESS = ProcessConfig(tls=TlsFiles())
SERVER = ServerConfig(source="", process=PROCESS, quic=QuicConfig(), services={})
CLIENT = ClientConfig(source="", process=PROCESS, servers=(), services={})


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cgroup(root: Path, own: str, **quotas: str) -> Path:
    """A cgroup tree below ``root``; the path of the file that says which group is ours."""
    (root / own.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for group, quota in quotas.items():
        (root / group.replace("__", "/") / "cpu.max").write_text(f"{quota}\n")
    membership = root / "membership"
    membership.write_text(f"0::{own}\n")
    return membership


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 8),
        ({"a__b": "max 100000"}, 8),
        ({"a__b": "200000 100000"}, 2),
        ({"a__b": "150000 100000"}, 2),
        ({"a__b": "10000 100000"}, 1),
        ({"a__b": "max 100000", "a": "300000 100000"}, 3),
        ({"a__b": "400000 100000", "a": "300000 100000"}, 3),
        ({"a__b": "1600000 100000"}, 8),
        ({"a__b": "garbage"}, 8),
    ],
)
def test_the_quota_of_the_group_and_those_around_it(
    cpus: None, tmp_path: Path, quotas: dict[str, str], expected: int
) -> None:
    assert usable.usable_cpus(tmp_path, cgroup(tmp_path, "/a/b", **quotas)) == expected


def test_without_cgroup_v2(cpus: None, tmp_path: Path) -> None:
    assert usable.usable_cpus(tmp_path, tmp_path / "nothing") == 8
    (tmp_path / "v1").write_text("4:memory:/a\n")
    assert usable.usable_cpus(tmp_path, tmp_path / "v1") == 8


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [((-1, 100_000), (-1, 100_000), 8), ((150_000, 100_000), (-1, 100_000), 2), ((-1, 100_000), (50_000, 50_000), 1)],
)
def test_cgroup_v1(
    cpus: None, tmp_path: Path, mount: str, inner: tuple[int, int], outer: tuple[int, int], expected: int
) -> None:
    group = tmp_path / mount / "a" / "b"
    group.mkdir(parents=True)
    for place, (quota_us, period_us) in ((group, inner), (group.parent, outer)):
        (place / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
        (place / "cpu.cfs_period_us").write_text(f"{period_us}\n")
    (tmp_path / "v1").write_text("12:pids:/x\n4:cpu,cpuacct:/a/b\n0::/\n")
    assert usable.usable_cpus(tmp_path, tmp_path / "v1") == expected


def test_auto_takes_what_the_pids_limit_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "usable_cpus", lambda: 64)
    for left, expected in ((None, 64), (10_000, 64), (100, 4), (10, 2)):
        monkeypatch.setattr(usable.limits, "tasks_left", lambda left=left: left)
        assert usable.worker_count(SERVER) == expected


def test_here() -> None:
    assert 1 <= usable.usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("cpus_here", "server", "client"), [(1, 2, 1), (2, 2, 2), (6, 6, 6), (999, 256, 256)])
def test_auto(monkeypatch: pytest.MonkeyPatch, cpus_here: int, server: int, client: int) -> None:
    monkeypatch.setattr(usable, "usable_cpus", lambda: cpus_here)
    assert usable.worker_count(SERVER) == server
    assert usable.worker_count(CLIENT) == client


def test_a_number_is_taken_as_it_is() -> None:
    assert (
        usable.worker_count(msgspec.structs.replace(SERVER, process=msgspec.structs.replace(PROCESS, workers=1))) == 1
    )
