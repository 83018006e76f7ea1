from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from qmux.config.schema import ListenAddress, LogConfig, ServiceConfig
from tests.supervisor.daemons import FakeDaemon, free_port, running
from tests.waiting import until


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def other_service(port: int) -> ServiceConfig:
    return ServiceConfig(name="other", bind=(ListenAddress("127.0.0.1", port),))


def moved(daemon: FakeDaemon, port: int) -> dict[str, ServiceConfig]:
    return {"web": msgspec.structs.replace(daemon.web, bind=(ListenAddress("127.0.0.1", port),))}


def test_sighup_applies_a_changed_service(daemon: FakeDaemon) -> None:
    before = daemon.children()
    daemon.write(services={"web": msgspec.structs.replace(daemon.web, maxconn=7)})
    daemon.signal(signal.SIGHUP)
    until(lambda: daemon.said("reload done"), "done")
    configures = [daemon.heard(child, "Configure") for child in ("worker-0", "worker-1", "admin")]
    assert [len(messages) for messages in configures] == [1, 1, 1]
    assert len({messages[0]["version"] for messages in configures}) == 1
    assert all(messages[0]["config"]["services"]["web"]["maxconn"] == 7 for messages in configures)
    until(lambda: daemon.said("reload: services.web.maxconn: - -> 7; in place"), "said")
    assert daemon.children() == before


def test_binds_come_and_go(daemon: FakeDaemon) -> None:
    new, old = free_port(), daemon.port
    daemon.write(services={"other": other_service(new)})
    ok, lines, code = daemon.request()
    assert (ok, code) == (True, 0), lines
    served = {daemon.ask(new)[3] for _ in range(40)}
    assert served == {f"traffic|tcp|other|127.0.0.1:{new}|0", f"traffic|tcp|other|127.0.0.1:{new}|1"}
    until(lambda: not listens(old), "the removed one is closed")
    # ... and may come back at once.
    daemon.write()
    assert daemon.request()[0]
    assert daemon.ask(old)[0].startswith("worker-")
    until(lambda: not listens(new), "closed")


def test_an_address_passes_to_another_service(daemon: FakeDaemon) -> None:
    daemon.write(services={"other": other_service(daemon.port)})
    assert daemon.request()[0]
    # Each worker had the bind of the new service, and Accept, before the reload was answered: what comes now is its.
    for number in (0, 1):
        kinds = [message["type"] for message in daemon.heard(f"worker-{number}")]
        assert "Accept" in kinds[kinds.index("AddBind") :]
    served = [daemon.ask()[3] for _ in range(30)]
    assert {key.rpartition("|")[0] for key in served} == {f"traffic|tcp|other|127.0.0.1:{daemon.port}"}


def test_a_wider_address_replaces_a_narrow_one(daemon: FakeDaemon) -> None:
    """The two overlap: only this daemon may have both for a moment."""
    daemon.write(services={"web": msgspec.structs.replace(daemon.web, bind=(ListenAddress("", daemon.port),))})
    ok, lines, _ = daemon.request()
    assert ok, lines
    until(lambda: all(daemon.heard(f"worker-{n}", "RemoveBind") for n in (0, 1)), "the narrow one is closed")
    assert daemon.ask()[3].startswith(f"traffic|tcp|web|0.0.0.0:{daemon.port}|")
    assert daemon.ask(host="::1")[3].startswith(f"traffic|tcp|web|[::]:{daemon.port}|")


def test_a_restarted_worker_gets_what_is_in_force(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        new = free_port()
        daemon.write(services=moved(daemon, new))
        assert daemon.request()[0]
        os.kill(daemon.children()["worker-0"], signal.SIGKILL)
        until(lambda: len(daemon.lines("worker-0 ready")) == 2, "back")
        configure = daemon.heard("worker-0", "Configure")[-1]
        assert (configure["version"], configure["epoch"]) == (2, 2)
        assert daemon.heard("worker-0", "AddBind")[-1]["key"] == f"traffic|tcp|web|127.0.0.1:{new}|0"


def test_a_bad_file_changes_nothing(daemon: FakeDaemon) -> None:
    (daemon.directory / "config.json").write_text('{"source": 1}')
    ok, lines, code = daemon.request()
    assert (ok, code) == (False, 3)
    assert lines[0].startswith("server.toml:3: services.web.bind: ")
    until(lambda: daemon.said("reload refused: nothing was changed"), "said")
    assert daemon.said(f"reload: {lines[0]}")
    assert daemon.heard("worker-0", "Configure") == []
    (daemon.directory / "config.json").unlink()
    ok, lines, code = daemon.request()
    assert (ok, code) == (False, 3)
    assert "No such file" in lines[0]
    assert daemon.ask()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_defect_is_an_answer_too(daemon: FakeDaemon, dry_run: bool) -> None:
    """Whoever asked would wait for a minute, and systemd for READY."""
    (daemon.directory / "config.json").write_bytes(b"\xff")  # the fake daemon does not expect that
    ok, lines, code = daemon.request(dry_run=dry_run)
    assert (ok, code) == (False, 1)
    assert lines[0].startswith("internal error: UnicodeDecodeError(")
    until(lambda: daemon.said("reload failed"), "said")
    daemon.write()
    assert daemon.request()[0]
    assert daemon.ask()


def test_a_port_in_use_changes_nothing(daemon: FakeDaemon) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        both = (ListenAddress("127.0.0.1", free_port()), ListenAddress("127.0.0.1", port))
        daemon.write(services={"web": msgspec.structs.replace(daemon.web, bind=both)})
        ok, lines, code = daemon.request()
        assert (ok, code) == (False, 4)
        assert f"127.0.0.1:{port} (services.web.bind): address in use" in lines[0]
        assert not listens(both[0].port)
        assert daemon.ask()


@pytest.mark.parametrize("how", ["refuse", "silent-configure"])
def test_a_worker_that_does_not_agree_restores_the_old(tmp_path: Path, how: str) -> None:
    with running(tmp_path, configure_timeout_s=1.5) as daemon:  # the others answer in time
        new = free_port()
        daemon.tell("worker-1", how)
        daemon.write(services=moved(daemon, new))
        ok, lines, code = daemon.request()
        assert (ok, code) == (False, 3)
        reason = "I do not want this" if how == "refuse" else "no answer within 1.5 s"
        assert lines[0] == f"worker-1: {reason}"
        for child in ("worker-0", "worker-1"):
            versions = until(
                lambda child=child: len(found := daemon.heard(child, "Configure")) == 3 and found,  # type: ignore[misc]
                "the old one again",
            )
            assert versions[2]["version"] == 3
            assert versions[2]["config"] == versions[0]["config"]
        assert not listens(new)
        assert daemon.ask()[3].startswith(f"traffic|tcp|web|127.0.0.1:{daemon.port}|")
        daemon.tell("worker-1", "")
        assert daemon.request()[0]
        assert daemon.ask(new)


def test_a_worker_that_dies_meanwhile_does_not_hold_it_up(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.tell("worker-1", "silent-configure")
        daemon.write(services=moved(daemon, new := free_port()))
        daemon.signal(signal.SIGHUP)
        until(lambda: len(daemon.heard("worker-1", "Configure")) == 2, "asked")
        os.kill(daemon.children()["worker-1"], signal.SIGKILL)
        until(lambda: daemon.said("reload done"), "done")
        until(lambda: len(daemon.lines("worker-1 ready")) == 2, "back")
        assert {daemon.ask(new)[0] for _ in range(40)} == {"worker-0", "worker-1"}


def test_what_needs_a_restart_is_said_and_the_rest_applied(daemon: FakeDaemon) -> None:
    process = msgspec.structs.replace(daemon.process_config, workers=3)
    daemon.write(process=process, services={"web": msgspec.structs.replace(daemon.web, retries=9)})
    for _ in range(2):  # it is as true the second time
        ok, lines, code = daemon.request()
        assert (ok, code) == (True, 6)
        assert "server.workers: 2 -> 3 needs a restart; still 2" in lines
    assert daemon.heard("worker-0", "Configure")[-1]["config"]["services"]["web"]["retries"] == 9
    assert daemon.heard("worker-0", "Configure")[-1]["config"]["process"]["workers"] == 2


def test_a_dry_run_only_tells(daemon: FakeDaemon) -> None:
    daemon.write(services=moved(daemon, new := free_port()))
    ok, lines, code = daemon.request(dry_run=True)
    assert (ok, code) == (True, 0)
    assert f'services.web.bind: "127.0.0.1:{daemon.port}" -> "127.0.0.1:{new}"; in place' in lines
    assert daemon.heard("worker-0", "Configure") == []
    assert not listens(new)


def test_full_is_not_there_yet(daemon: FakeDaemon) -> None:
    ok, lines, code = daemon.request(full=True)
    assert (ok, code) == (False, 6)
    assert "not available in this version" in lines[0]


def test_other_certificates_are_handed_out(daemon: FakeDaemon) -> None:
    (daemon.directory / "material").write_bytes(b"another key")
    ok, lines, code = daemon.request()
    assert (ok, lines, code) == (True, ["certificates: other contents; in place"], 0)
    assert len(daemon.heard("worker-0", "Configure")) == 1
    assert daemon.request()[1] == ["nothing has changed"]
    assert len(daemon.heard("worker-0", "Configure")) == 1


def test_the_log_may_move(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.write(log=LogConfig(file=str(tmp_path / "nowhere" / "log")))
        ok, lines, code = daemon.request()
        assert (ok, code) == (False, 4)
        assert "log.file" in lines[0]
        daemon.write(log=LogConfig(file=str(tmp_path / "log")))
        assert daemon.request()[0]
        children = daemon.children().values()
        until(lambda: all(os.readlink(f"/proc/{pid}/fd/2") == str(tmp_path / "log") for pid in children), "moved")
        assert "reload done" in (tmp_path / "log").read_text()


def test_many_at_once_end_with_the_newest_file(daemon: FakeDaemon) -> None:
    for number in range(1, 21):
        daemon.write(services={"web": msgspec.structs.replace(daemon.web, maxconn=number)})
        daemon.signal(signal.SIGHUP)

    def newest() -> int:
        *_, last = (
            message["config"]["services"]["web"]["maxconn"] for message in daemon.heard("worker-0", "Configure")
        )
        return int(last)

    until(lambda: daemon.heard("worker-0", "Configure") and newest() == 20, "20")
    assert daemon.request()[1] == ["nothing has changed"]
