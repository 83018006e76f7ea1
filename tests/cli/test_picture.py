"""The lines of ``qmux status`` from its model."""

from __future__ import annotations

from typing import Any

import click

from qmux.admin.model import (
    ClientDaemon,
    ClientService,
    ClientSession,
    ClientStatus,
    FailedBind,
    Process,
    ServerLink,
    ServerService,
    ServerStatus,
    Status,
)
from qmux.cli import picture
from qmux.messages import DaemonSummary

NOW = 1_800_000_000.0
DAY = 86_400


def plain(status: Status) -> list[str]:
    return [click.unstyle(line) for line in picture.lines(status, NOW)]


TRAFFIC: dict[str, Any] = {
    "connections": 318,
    "total": 400,
    "bytes_in": 1,
    "bytes_out": 2,
    "rate_in_bit_s": 1_200_000_000,
    "rate_out_bit_s": 8_400_000_000,
    "retried": 0,
    "handed_off": 0,
    "refused": {},
}


def service(name: str, **changes: Any) -> ServerService:
    about = {"name": name, "binds": [":80"], "protocol": "tcp", "clients_ready": 2, "clients": 2}
    return ServerService(**{**about, **TRAFFIC, **changes})


def client(name: str, **changes: Any) -> ClientSession:
    about = {
        "client": name,
        "instance": "host-1",
        "session": "00",
        "services": ["a"],
        "from_": "192.0.2.7:4711",
        "state": "ready",
        "connections": 2,
        "active": 160,
        "rtt_ms": 12.4,
        "mtu_bytes": 1472,
        "since": NOW - 60,
        "not_after": round(NOW + 88.5 * DAY),
    }
    return ClientSession(**{**about, **changes})


def process(slot: int, **changes: Any) -> Process:
    name = f"worker-{slot}" if slot >= 0 else "supervisor"
    about = {"name": name, "slot": slot, "state": "ready", "pid": 7, "rss_bytes": 48 << 20, "cpu_s": 12.34}
    return Process(**{**about, **changes})


def daemon(**changes: Any) -> dict[str, Any]:
    about = {
        "role": "server",
        "pid": 7,
        "source": "/etc/qmux/server.toml",
        "version": "1.0.0",
        "started_at": NOW - 7860,
        "admin_socket": "/run/qmux/admin.sock",
        "state": "ready",
        "generation": 1,
        "workers": 2,
        "engine": "aioquic",
    }
    return {**about, **changes}


def server(**changes: Any) -> ServerStatus:
    known = {
        "server": DaemonSummary(**daemon()),
        "workers": [process(-1), process(0), process(1)],
        "services": [service("a")],
        "failed_binds": [],
        "clients": [client("pod-1")],
        "generations": [],
    }
    return ServerStatus(**{**known, **changes})


def test_a_server_as_in_the_documentation() -> None:
    status = server(
        services=[
            service("a"),
            service("b", binds=["127.0.0.1:443", "[::1]:443"], clients_ready=1, refused={"queue_timeout": 4}),
        ],
        clients=[
            client("pod-1"),
            client(
                "pod-9", services=["a", "b"], state="suspect", active=0, rtt_ms=None, not_after=round(NOW + 5.5 * DAY)
            ),
        ],
    )
    assert plain(status) == [
        "qmuxd 1.0.0 · engine aioquic · 2 workers · generation 1 since 2h 11m",
        "SERVICE  BIND                     PROTO  CLIENTS  CONNS  RATE IN/OUT         REFUSED",
        "a        :80                      tcp    2/2      318    1.20 / 8.40 Gbit/s  0",
        "b        127.0.0.1:443,[::1]:443  tcp    1/2      318    1.20 / 8.40 Gbit/s  4 queue_timeout",
        "CLIENT  SERVICES  FROM            STATE    CONNS  RTT    LOSS  CERT",
        "pod-1   a         192.0.2.7:4711  ready    160    12 ms  -     88 d",
        "pod-9   a,b       192.0.2.7:4711  suspect  0      -      -     5 d  "
        "! expires soon: qmux pki issue client pod-9 --service a --service b",
        "PROCESS     PID  MEMORY  CPU TIME",
        "supervisor  7    48 MiB  12.3 s",
        "worker-0    7    48 MiB  12.3 s",
        "worker-1    7    48 MiB  12.3 s",
    ]


def test_a_bind_that_fails_is_seen() -> None:
    failed = [
        FailedBind(service="a", address="0.0.0.0:80", reason="No space left on device"),
        FailedBind(service="", address="0.0.0.0:8443", reason="Operation not permitted"),
    ]
    lines = plain(server(failed_binds=failed))
    assert "! a: bind 0.0.0.0:80 does not accept: No space left on device" in lines
    assert "! quic: bind 0.0.0.0:8443 does not accept: Operation not permitted" in lines


def test_without_clients_it_says_what_to_do() -> None:
    lines = plain(server(clients=[]))
    assert lines[4] == "no client is connected; start one: qmuxc -c client.toml"
    assert lines[5].startswith("PROCESS")


def test_an_expired_certificate_and_a_restarted_worker_stand_out() -> None:
    lines = plain(
        server(
            clients=[client("pod-1", not_after=round(NOW) - 1)],
            workers=[
                process(0, restarts=2, rss_bytes=3 << 29, cpu_s=7860.0),
                process(1, state="restarting", pid=0, restarts=1, rss_bytes=0, cpu_s=0.0),
            ],
        )
    )
    assert lines[4].endswith("0 d  ! expired: qmux pki issue client pod-1 --service a")
    assert lines[5:8] == [
        "PROCESS   PID  MEMORY   CPU TIME",
        "worker-0  7    1.5 GiB  2h 11m",
        "worker-1  -    -        -",
    ]
    assert lines[8:] == ["! worker-0: ready, pid 7, 2 restarts", "! worker-1: restarting, pid -, 1 restart"]


def test_a_stopping_daemon_says_so() -> None:
    assert plain(server(server=DaemonSummary(**daemon(state="stopping"))))[0].endswith(" · stopping")


def test_a_daemon_that_has_just_started_is_no_error() -> None:
    known = DaemonSummary(**daemon(state="starting", engine="", started_at=NOW))
    lines = plain(server(server=known, workers=[], services=[], clients=[]))
    assert lines[0] == "qmuxd 1.0.0 · engine - · 0 workers · generation 1 since 0s · starting"


def test_a_client() -> None:
    def link(server: str, address: str, state: str, connections: int, rtt_ms: float, since: float) -> ServerLink:
        return ServerLink(
            server=server, address=address, state=state, connections=connections, rtt_ms=rtt_ms, since=since
        )

    status = ClientStatus(
        client=ClientDaemon(**daemon(role="client", started_at=NOW - 5), instance="pod-1"),
        workers=[process(0)],
        servers=[
            link("t.example.com:8443", "192.0.2.1:8443", "registered", 2, 1.25, NOW - 61),
            link("u.example.com:8443", "", "the name does not resolve", 0, 0.0, 0.0),
        ],
        services=[ClientService(**{"name": "web", "target": "127.0.0.1:3000", **TRAFFIC})],
    )
    assert plain(status) == [
        "qmuxc 1.0.0 · engine aioquic · 1 worker · generation 1 since 5s",
        "SERVICE  TARGET          CONNS  RATE IN/OUT         REFUSED",
        "web      127.0.0.1:3000  318    1.20 / 8.40 Gbit/s  0",
        "SERVER              ADDRESS         STATE                      CONNS  RTT     SINCE",
        "t.example.com:8443  192.0.2.1:8443  registered                 2      1.2 ms  1m 1s",
        "u.example.com:8443  -               the name does not resolve  0      -       -",
        "PROCESS   PID  MEMORY  CPU TIME",
        "worker-0  7    48 MiB  12.3 s",
    ]


def test_colour_does_not_move_columns() -> None:
    lines = picture.lines(server(), NOW)
    assert any("\x1b[" in line for line in lines)
    assert [click.unstyle(line) for line in lines] == plain(server())
