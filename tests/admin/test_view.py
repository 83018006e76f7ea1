"""The JSON of ``qmux status`` from the messages that the admin process gets."""

from __future__ import annotations

import json

from qmux.admin.model import as_json, from_json
from qmux.admin.view import View
from qmux.pool.rows import Delta, FailedBind, Offer, ServerRow, WorkerReport
from tests.admin.made import client_config, configure, report, row, server_config, table, whole_pass, worker


def server_view(*services: str) -> View:
    view = View()
    view.configure(configure(server_config(*services)))
    view.table(table(worker(0), worker(1)), 1.0)
    return view


def test_before_the_first_message_there_is_nothing_and_no_health() -> None:
    view = View()
    assert view.status(0.0) is None
    assert as_json(view.status(0.0)) == {}
    assert not view.is_healthy(1.0)


def test_a_server_shows_services_clients_and_workers() -> None:
    view = server_view("web", "idle")
    view.table(table(worker(0), worker(1)), 1.0)
    view.bus(whole_pass(0, row(1), row(2, b"t" * 16, state="suspect", rtt_ms=0.0)), 1.0)
    view.bus(whole_pass(1, row(1, rtt_ms=1.5, connected_at_ms=4000)), 1.0)
    view.bus(report(0, active=5, total=8, bytes_in=10, bytes_out=20, refused={"queue_timeout": 4}), 1.0)
    failed = FailedBind("web", "0.0.0.0:80", "No space left on device")
    view.bus(WorkerReport(2, 1, 1, "aioquic", {}, None, failed_binds=(failed,)), 1.0)
    status = json.loads(json.dumps(as_json(view.status(1.0))))
    assert as_json(from_json(status)) == status
    assert set(status) == {"server", "workers", "services", "failed_binds", "clients", "generations"}
    assert status["server"] == {
        "role": "server",
        "source": "/etc/qmux/server.toml",
        "generation": 1,
        "engine": "aioquic",
        "workers": 2,
        "pid": 99,
        "version": "1.0.0",
        "started_at": 1000.0,
        "admin_socket": "/run/qmux/admin.sock",
        "state": "ready",
        "server_id": "",
        "config_version": 1,
        "binds": {},
        "last_reload": None,
    }
    assert status["failed_binds"] == [{"service": "web", "address": "0.0.0.0:80", "reason": "No space left on device"}]
    assert [worker["name"] for worker in status["workers"]] == ["supervisor", "worker-0", "worker-1"]
    assert [worker.get("endpoint", {}).get("half_open") for worker in status["workers"]] == [
        None,
        3,
        None,
    ]  # worker-1 has not reported
    web, idle = status["services"]
    assert (web["name"], web["binds"], web["protocol"]) == ("web", [":80"], "tcp")
    assert (web["clients_ready"], web["clients"], web["connections"], web["total"]) == (1, 2, 5, 8)
    assert (web["bytes_in"], web["bytes_out"], web["refused"]) == (10, 20, {"queue_timeout": 4})
    assert (idle["clients"], idle["connections"]) == (0, 0)
    assert status["generations"] == [{"number": 1, "since": 1000.0, "workers": 2, "connections": 5}]


def test_a_client_is_one_row_for_all_its_connections() -> None:
    view = server_view()
    view.bus(whole_pass(0, row(1, state="suspect"), row(2, rtt_ms=9.0, state="draining")), 1.0)
    view.bus(whole_pass(1, row(1, rtt_ms=1.5, connected_at_ms=4000, offers=(Offer("web"), Offer("api")))), 1.0)
    (client,) = as_json(view.status(1.0))["clients"]
    assert (client["client"], client["instance"], client["session"]) == ("pod-1", "host-1", (b"s" * 16).hex())
    assert client["services"] == ["api", "web"]
    assert (client["state"], client["connections"], client["active"]) == ("ready", 3, 9)
    assert (client["rtt_ms"], client["since"], client["not_after"]) == (1.5, 4.0, 2_000_000_000)
    assert client["from"] == "192.0.2.7:4711"


def test_a_state_is_that_of_the_best_connection() -> None:
    view = server_view()
    view.bus(whole_pass(0, row(1, state="draining", rtt_ms=0.0)), 1.0)
    assert as_json(view.status(1.0))["clients"][0]["state"] == "draining"
    assert as_json(view.status(1.0))["clients"][0]["rtt_ms"] is None
    view.bus(Delta(0, 1, (row(2, state="suspect"),), (), {}), 1.0)
    assert as_json(view.status(1.0))["clients"][0]["state"] == "suspect"
    view.bus(Delta(0, 1, (), (1, 2), {}), 1.0)
    assert as_json(view.status(1.0))["clients"] == []


def test_what_a_dead_worker_said_is_gone_with_it() -> None:
    view = server_view()
    view.table(table(worker(0), worker(1)), 1.0)
    view.bus(whole_pass(0, row(1)), 1.0)
    view.bus(whole_pass(1, row(1, b"t" * 16)), 1.0)
    view.bus(report(0, active=2, total=3), 1.0)
    view.table(table(worker(0, pid=0, state="restarting"), worker(1)), 1.0)
    status = as_json(view.status(1.0))
    assert [client["session"] for client in status["clients"]] == [(b"t" * 16).hex()]
    assert (status["services"][0]["connections"], status["services"][0]["total"]) == (0, 3)
    view.bus(whole_pass(0, row(1)), 1.0)  # a message that was still under way
    assert len(as_json(view.status(1.0))["clients"]) == 1
    view.table(table(worker(0, epoch=2), worker(1)), 1.0)
    view.bus(whole_pass(0, row(1), epoch=2), 1.0)
    assert len(as_json(view.status(1.0))["clients"]) == 2


def test_health_is_a_worker_that_is_ready() -> None:
    view = server_view()
    view.table(table(), 1.0)
    assert not view.is_healthy(1.0)
    view.table(table(worker(0, state="starting"), worker(1)), 1.0)
    assert view.is_healthy(1.0)
    view.table(table(worker(0, state="draining"), worker(1, state="draining")), 1.0)
    assert not view.is_healthy(1.0)
    view.table(table(worker(0), worker(1, silent_s=4.0)), 1.0)
    assert view.is_healthy(1.0)
    view.table(table(worker(0), worker(1, silent_s=6.0)), 1.0)  # it stands still, and its users with it
    assert not view.is_healthy(1.0)
    view.table(table(worker(0), worker(1)), 1.0)
    assert view.is_healthy(5.0)
    assert not view.is_healthy(7.0)  # the supervisor stands still
    view.table(table(worker(0), state="stopping"), 1.0)  # within drain_delay: users are still taken, health says no
    assert not view.is_healthy(1.0)


def test_a_reload_changes_the_services() -> None:
    view = server_view("web")
    view.table(table(worker(0)), 1.0)
    view.configure(configure(server_config("web", "api"), version=2))
    assert [service["name"] for service in as_json(view.status(1.0))["services"]] == ["web", "api"]


def test_a_client_with_a_name_that_steers_a_terminal() -> None:
    view = server_view("web")
    view.table(table(worker(0)), 1.0)
    view.bus(whole_pass(0, row(1, principal="\x9b2J" + "x" * 9000)), 1.0)
    (client,) = as_json(view.status(1.0))["clients"]
    assert client["client"] == r"\x9b2J" + "x" * 191 + "…"


def test_a_client_shows_its_servers_and_targets() -> None:
    view = View()
    view.configure(configure(client_config()))
    view.table(table(worker(0), role="client"), 1.0)
    link = ServerRow("tunnel.example.com:8443", "192.0.2.1:8443", "registered", 2, 3.5, 4000)
    view.bus(WorkerReport(0, 1, 1, "aioquic", {}, None, (link,)), 1.0)
    status = as_json(view.status(1.0))
    assert set(status) == {"client", "workers", "servers", "services"}
    assert (status["client"]["role"], status["client"]["instance"]) == ("client", "pod-1")
    assert status["servers"] == [
        {
            "server": "tunnel.example.com:8443",
            "address": "192.0.2.1:8443",
            "state": "registered",
            "connections": 2,
            "rtt_ms": 3.5,
            "since": 4.0,
            "reason": "",
        }
    ]
    assert view.not_connected() == {}
    assert (status["services"][0]["name"], status["services"][0]["target"]) == ("web", "127.0.0.1:3000")


def test_a_client_says_why_it_is_not_connected_and_stays_healthy() -> None:
    view = View()
    view.configure(configure(client_config()))
    view.table(table(worker(0), role="client"), 1.0)
    links = (
        ServerRow("one.example.com:8443", "192.0.2.1:8443", "our_certificate", 0, 0.0, 4000, "no such curve"),
        ServerRow("two.example.com:8443", "", "unresolved", 0, 0.0, 4000, "the name cannot be resolved"),
        ServerRow("two.example.com:8443", "192.0.2.3:8443", "connecting", 0, 0.0, 4000),
        ServerRow("two.example.com:8443", "192.0.2.4:8443", "same server as 192.0.2.5:8443", 0, 0.0, 4000),
        ServerRow("two.example.com:8443", "192.0.2.5:8443", "registered", 1, 1.0, 4000),
    )
    view.bus(WorkerReport(0, 1, 1, "aioquic", {}, None, links), 1.0)
    assert view.not_connected() == {
        "192.0.2.1:8443": "no such curve",
        "two.example.com:8443": "the name cannot be resolved",
        "192.0.2.3:8443": "connecting",
    }
    assert view.is_healthy(1.0)
