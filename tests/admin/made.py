"""Configurations, rows and reports for the admin process's tests."""

from __future__ import annotations

from typing import Any

import msgspec

from qmux import bus
from qmux.config.schema import (
    ClientConfig,
    ClientServiceConfig,
    ListenAddress,
    ProcessConfig,
    QuicConfig,
    ServerAddress,
    ServerConfig,
    ServiceConfig,
    Target,
    TlsFiles,
)
from qmux.messages import Configure, DaemonFacts, GenerationFacts, ProcessRow, Table
from qmux.pki.material import Keys, Material
from qmux.pool.rows import EndpointReport, Offer, Pass, Row, ServiceCounters, WorkerReport

PROCESS = ProcessConfig(tls=TlsFiles(bundle="/x.pem"))


def server_config(*services: str) -> ServerConfig:
    made = {name: ServiceConfig(name=name, bind=(ListenAddress("", 80),)) for name in services or ("web",)}
    return ServerConfig(source="/etc/qmux/server.toml", process=PROCESS, quic=QuicConfig(), services=made)


def client_config() -> ClientConfig:
    return ClientConfig(
        source="/etc/qmux/client.toml",
        process=PROCESS,
        servers=(ServerAddress("tunnel.example.com", 8443),),
        services={"web": ClientServiceConfig(name="web", target=Target("127.0.0.1", 3000))},
        instance="pod-1",
    )


def configure(config: ServerConfig | ClientConfig, directory: str = "/nowhere", version: int = 1) -> Configure:
    publish, subscribe = bus.endpoints(directory)
    return Configure(
        version=version,
        role="server" if isinstance(config, ServerConfig) else "client",
        config=msgspec.msgpack.encode(config),
        material=Material(b"", b"", b""),
        keys=Keys(b"", b"", b""),
        server_id=b"",
        generation=1,
        index=-1,
        slot=-1,
        epoch=0,
        workers=2,
        runtime_dir=directory,
        bus_publish=publish,
        bus_subscribe=subscribe,
    )


def row(key: int, session: bytes = b"s" * 16, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "tenant": "default",
        "principal": "pod-1",
        "instance": "host-1",
        "offers": (Offer("web"),),
        "state": "ready",
        "active": 3,
        "active_here": 3,
        "active_total": 2,
        "active_at_ms": 1,
        "address": "192.0.2.7:4711",
        "rtt_ms": 3.25,
        "connected_at_ms": 5000,
        "not_after": 2_000_000_000,
    }
    return Row(key=key, session=session, **(values | changes))


def whole_pass(slot: int, *rows: Row, epoch: int = 1) -> Pass:
    return Pass(slot, epoch, 0, 1 << 62, rows, {})


def report(slot: int, *, epoch: int = 1, **counters: Any) -> WorkerReport:
    return WorkerReport(
        slot, epoch, 100 + slot, "aioquic", {"web": ServiceCounters(**counters)}, EndpointReport(half_open=3)
    )


def worker(slot: int, epoch: int = 1, **changes: Any) -> ProcessRow:
    values: dict[str, Any] = {"pid": 100 + slot, "state": "ready", "index": slot}
    return ProcessRow(name=f"worker-{slot}", slot=slot, epoch=epoch, **(values | changes))


def table(*workers: ProcessRow, **facts: Any) -> Table:
    own = ProcessRow(name="supervisor", pid=99, state="ready")
    known = DaemonFacts(
        role="server",
        pid=99,
        source="/etc/qmux/server.toml",
        version="1.0.0",
        started_at=1000.0,
        admin_socket="/run/qmux/admin.sock",
        state="ready",
        generation=1,
        workers=len(workers),
        engine="aioquic",
        generations=[GenerationFacts(1, 1000.0)],
    )
    return Table([own, *workers], msgspec.structs.replace(known, **facts))
