from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.supervisor.daemons import eventually, running


def test_starts_and_stops(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        assert sorted(daemon.children()) == ["admin", "worker-0", "worker-1"]
        assert daemon.ask()[0] in ("worker-0", "worker-1")
        assert daemon.ask_quic(0)[0] == "worker-0"
        assert daemon.ask_quic(1)[0] == "worker-1"
        facts = json.loads((tmp_path / "run" / "daemon.json").read_text())
        assert (facts["role"], facts["pid"]) == ("server", daemon.pid)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.children() == {}
        assert daemon.log("worker-0", "Drain") == [{"type": "Drain", "fds": 0, "deadline_s": 3.0}]
        assert not (tmp_path / "run" / "daemon.json").exists()


def test_a_killed_worker_comes_back_in_its_place(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.ask_quic(0)
        os.kill(daemon.children()["worker-0"], signal.SIGKILL)
        name, _, epoch, key = daemon.ask_quic(0)
        assert (name, epoch, key) == ("worker-0", 2, f"quic|127.0.0.1:{daemon.quic_port}|0")
        eventually(lambda: any(m["died"] == [0] for m in daemon.log("worker-1", "Peers")), "the sibling is told")
