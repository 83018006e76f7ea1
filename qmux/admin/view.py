"""The daemon as ``qmux status`` shows it: built from the process table, the pool and the workers' reports."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from qmux.admin.model import (
    ClientDaemon,
    ClientService,
    ClientSession,
    ClientStatus,
    FailedBind,
    Generation,
    Process,
    ServerLink,
    ServerService,
    ServerStatus,
    Status,
)
from qmux.admin.totals import Totals
from qmux.config.schema import ClientConfig, ServerConfig, ServiceConfig
from qmux.heard import heard
from qmux.messages import Configure, DaemonFacts, DaemonSummary, ProcessRow, Table
from qmux.pool.candidates import Candidate
from qmux.pool.pool import Pool
from qmux.pool.rows import BusMessage, WorkerReport

STILL_S = 5.0
"""A process that says nothing for so long stands still: each worker sends a heartbeat, and the supervisor its table,
once a second. The supervisor ends such a worker after ten (``supervisor.settings``)."""

_STATES = ("ready", "suspect", "draining")
"""By the rank of a session (``Candidate.rank``)."""


class View:
    """What is known of the daemon. ``configure`` comes first; the rest in any order."""

    def __init__(self) -> None:
        self._pool = Pool(slot=-1, epoch=0)
        self._totals = Totals()
        self._processes: list[ProcessRow] = []
        self._facts: DaemonFacts | None = None
        self._heard_at = 0.0
        self._live: dict[int, int] = {}  # slot → epoch of its process
        self._config: ServerConfig | ClientConfig | None = None

    # --- what comes in ---

    def configure(self, message: Configure) -> ServerConfig | ClientConfig:
        """The configuration, or a changed one. Raises msgspec.MsgspecError where it does not decode."""
        config: ServerConfig | ClientConfig
        if message.role == "server":
            config = msgspec.msgpack.decode(message.config, type=ServerConfig)
        else:
            config = msgspec.msgpack.decode(message.config, type=ClientConfig)
        self._config = config
        return config

    def table(self, message: Table, now: float) -> None:
        """The processes, at ``now`` (monotonic). One that is gone has no rows, whatever it last said on the bus."""
        self._heard_at = now
        self._processes = message.processes
        self._facts = message.facts
        live = {row.slot: row.epoch for row in message.processes if row.slot >= 0 and row.pid}
        for slot, epoch in self._live.items():
            if live.get(slot) != epoch:
                self._pool.forget(slot, epoch)
                self._totals.forget(slot, epoch)
        self._live = live

    def bus(self, message: BusMessage, now: float) -> None:
        """A message of a worker; ``now`` is monotonic."""
        if isinstance(message, WorkerReport):
            self._totals.receive(message, now)
        else:
            self._pool.receive(message, now)

    # --- what goes out ---

    def is_healthy(self, now: float) -> bool:
        """Whether a worker serves, none of the processes stands still, and the daemon is not stopping.

        A client without a server is healthy: starting it anew would not bring one.
        """
        serves = any(row.slot >= 0 and row.state == "ready" for row in self._processes)
        return (
            serves
            and self._facts is not None
            and self._facts.state == "ready"
            and self.silent_s(now) < STILL_S
            and all(row.silent_s < STILL_S for row in self._processes)
        )

    def silent_s(self, now: float) -> float:
        """How long ago the supervisor was last heard, 0 where it never was."""
        return now - self._heard_at if self._facts is not None else 0.0

    def not_connected(self) -> dict[str, str]:
        """At a client: the servers without a connection, by address, and why. No reason to restart it."""
        return {
            link.address or link.server: link.reason or link.state
            for link in self._totals.links()
            if not link.connections and not link.state.startswith("same server")
        }

    def status(self, now: float) -> Status | None:
        """The whole picture, None before the supervisor has said what this daemon is; ``now`` is monotonic."""
        if self._facts is None:
            return None
        if isinstance(self._config, ServerConfig):
            return self._server_status(self._config, self._facts, now)
        if isinstance(self._config, ClientConfig):
            return self._client_status(self._config, self._facts, now)
        return None

    def _server_status(self, config: ServerConfig, facts: DaemonFacts, now: float) -> ServerStatus:
        return ServerStatus(
            server=DaemonSummary(**_summary(facts)),
            workers=self._workers(),
            services=[self._server_service(service, now) for service in config.services.values()],
            failed_binds=[FailedBind(**asdict(bind)) for bind in self._totals.failed_binds()],
            clients=self._clients(),
            generations=self._generations(facts),
        )

    def _client_status(self, config: ClientConfig, facts: DaemonFacts, now: float) -> ClientStatus:
        return ClientStatus(
            client=ClientDaemon(**_summary(facts), instance=config.instance),
            workers=self._workers(),
            servers=[
                ServerLink(
                    server=link.server,
                    address=link.address,
                    state=link.state,
                    connections=link.connections,
                    rtt_ms=link.rtt_ms,
                    since=link.since_ms / 1000,
                    reason=link.reason,
                )
                for link in self._totals.links()
            ],
            services=[
                ClientService(
                    target=str(service.target),
                    resolve_failed=self._totals.service(name, now).counters.resolve_failed,
                    **self._traffic(name, now),
                )
                for name, service in config.services.items()
            ],
        )

    def _workers(self) -> list[Process]:
        """The processes, each worker of a server with the counters of its QUIC endpoint."""
        endpoints = {report.slot: report.endpoint for report in self._totals.newest()}
        return [Process(**asdict(row), endpoint=endpoints.get(row.slot) or UNSET) for row in self._processes]

    def _server_service(self, service: ServiceConfig, now: float) -> ServerService:
        sessions = self._pool.sessions(service.name)
        return ServerService(
            binds=[str(bind) for bind in service.bind],
            protocol=service.protocol,
            clients_ready=sum(session.rank == 0 for session in sessions),
            clients=len(sessions),
            **self._traffic(service.name, now),
        )

    def _traffic(self, name: str, now: float) -> dict[str, Any]:
        totals = self._totals.service(name, now)
        counters = totals.counters
        return {
            "name": name,
            "connections": counters.active,
            "total": counters.total,
            "bytes_in": counters.bytes_in,
            "bytes_out": counters.bytes_out,
            "rate_in_bit_s": round(totals.rate_in_bit_s),
            "rate_out_bit_s": round(totals.rate_out_bit_s),
            "retried": counters.retried,
            "handed_off": counters.handed_off,
            "refused": dict(counters.refused),
        }

    def _clients(self) -> list[ClientSession]:
        keys = dict.fromkeys((row.principal, row.session) for _, row in self._pool.rows())
        sessions = (self._pool.session(key) for key in keys)
        return [_client(session) for session in sessions if session is not None]

    def _generations(self, facts: DaemonFacts) -> list[Generation]:
        """The supervisor's list; all workers belong to the newest one until a reload can start another."""
        generations = [Generation(number=each.number, since=each.since) for each in facts.generations]
        for newest in generations[-1:]:
            newest.workers = sum(row.slot >= 0 for row in self._processes)
            newest.connections = sum(_active(report) for report in self._totals.newest())
        return generations


def _summary(facts: DaemonFacts) -> dict[str, Any]:
    return {field: getattr(facts, field) for field in DaemonSummary.__struct_fields__}


def _active(report: WorkerReport) -> int:
    """User connections that a worker holds."""
    return sum(counters.active for counters in report.services.values())


def _client(session: Candidate) -> ClientSession:
    rows = list(session.connections.values())
    rtts = [row.rtt_ms for row in rows if row.rtt_ms > 0]
    first = min(rows, key=lambda row: row.connected_at_ms)
    return ClientSession(
        client=heard(first.principal),
        instance=first.instance,
        session=first.session.hex(),
        services=sorted(session.offers),
        from_=first.address,
        state=_STATES[session.rank],
        connections=len(rows),
        active=sum(row.active for row in rows),
        rtt_ms=round(min(rtts), 3) if rtts else None,
        mtu_bytes=max(row.mtu_bytes for row in rows),
        since=first.connected_at_ms / 1000,
        not_after=first.not_after,
    )
