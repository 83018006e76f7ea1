"""A daemon's status as the lines of ``qmux status``, from its status."""

from __future__ import annotations

import click

from qmux.admin.model import (
    ClientService,
    ClientSession,
    ClientStatus,
    Process,
    ServerLink,
    ServerStatus,
    Status,
    Traffic,
)
from qmux.cli.text import cpu_time, duration, memory, plural, rates, table
from qmux.messages import DaemonSummary

EXPIRES_SOON_DAYS = 14
"""Two weeks: renewing is one command, but an operator has to see the line first."""

DAY_S = 86_400

_COLOURS = {"ready": "green", "registered": "green", "suspect": "yellow", "draining": "yellow"}


def lines(status: Status, now: float) -> list[str]:
    """All lines; ``now`` is the wall clock."""
    return _server(status, now) if isinstance(status, ServerStatus) else _client(status, now)


def _server(status: ServerStatus, now: float) -> list[str]:
    services = [
        (
            service.name,
            ",".join(service.binds) or "-",
            service.protocol,
            f"{service.clients_ready}/{service.clients}",
            *_traffic(service),
        )
        for service in status.services
    ]
    clients = [_client_row(client, now) for client in status.clients]
    return [
        _head("qmuxd", status.server, status.workers, now),
        *table(("SERVICE", "BIND", "PROTO", "CLIENTS", "CONNS", "RATE IN/OUT", "REFUSED"), services),
        *_coloured(table(("CLIENT", "SERVICES", "FROM", "STATE", "CONNS", "RTT", "LOSS", "CERT"), clients)),
        *_failed_binds(status),
        *([] if clients else ["no client is connected; start one: qmuxc -c client.toml"]),
        *_processes(status.workers),
        *_unwell(status.workers),
    ]


def _failed_binds(status: ServerStatus) -> list[str]:
    return [
        click.style(f"! {bind.service or 'quic'}: bind {bind.address} does not accept: {bind.reason}", fg="red")
        for bind in status.failed_binds
    ]


def _client(status: ClientStatus, now: float) -> list[str]:
    services = [(service.name, service.target, *_traffic(service)) for service in status.services]
    servers = [
        (
            server.server,
            server.address or "-",
            server.state,
            str(server.connections),
            _rtt(server.rtt_ms),
            duration(now - server.since) if server.since else "-",
        )
        for server in status.servers
    ]
    return [
        _head("qmuxc", status.client, status.workers, now),
        *table(("SERVICE", "TARGET", "CONNS", "RATE IN/OUT", "REFUSED"), services),
        *_coloured(table(("SERVER", "ADDRESS", "STATE", "CONNS", "RTT", "SINCE"), servers)),
        *_not_connected(status.servers),
        *_unresolved(status.services),
        *_processes(status.workers),
        *_unwell(status.workers),
    ]


def _not_connected(servers: list[ServerLink]) -> list[str]:
    """A line for each server without a connection: the table above has no room for the reason."""
    return [
        click.style(f"! not connected to {server.address or server.server}: {server.reason}", fg="yellow")
        for server in servers
        if server.reason and not server.connections
    ]


def _unresolved(services: list[ClientService]) -> list[str]:
    """A line for each service whose target's name could not be resolved at times."""
    return [
        click.style(
            f"! {service.name}: {plural(service.resolve_failed, 'lookup')} of {service.target} failed: "
            "does the name exist, and do the name servers answer?",
            fg="yellow",
        )
        for service in services
        if service.resolve_failed
    ]


def _head(program: str, daemon: DaemonSummary, workers: list[Process], now: float) -> str:
    parts = [
        f"{program} {daemon.version}",
        f"engine {daemon.engine or '-'}",
        plural(sum(worker.slot >= 0 for worker in workers), "worker"),
        f"generation {daemon.generation} since {duration(now - daemon.started_at)}",
    ]
    if daemon.state != "ready":
        parts.append(daemon.state)
    return click.style(" · ".join(parts), bold=True)


def _traffic(service: Traffic) -> tuple[str, str, str]:
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(service.refused.items())) or "0"
    return str(service.connections), rates(service.rate_in_bit_s, service.rate_out_bit_s), refused


def _client_row(client: ClientSession, now: float) -> tuple[str, ...]:
    return (
        client.client,
        ",".join(client.services) or "-",
        client.from_,
        client.state,
        str(client.active),
        _rtt(client.rtt_ms),
        "-",  # the engines do not count lost packets yet
        _certificate(client, now),
    )


def _certificate(client: ClientSession, now: float) -> str:
    left_s = client.not_after - now
    days = int(left_s // DAY_S)
    if days >= EXPIRES_SOON_DAYS:
        return f"{days} d"
    services = " ".join(f"--service {service}" for service in client.services)
    what = "expired" if left_s < 0 else "expires soon"
    return f"{max(days, 0)} d  ! {what}: qmux pki issue client {client.client} {services}".rstrip()


def _rtt(milliseconds: float | None) -> str:
    if not milliseconds:
        return "-"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _processes(rows: list[Process]) -> list[str]:
    """Resident memory of each process, and CPU time since it started."""
    cells = [
        (row.name, str(row.pid), memory(row.rss_bytes), cpu_time(row.cpu_s)) if row.pid else (row.name, "-", "-", "-")
        for row in rows
    ]
    return table(("PROCESS", "PID", "MEMORY", "CPU TIME"), cells) if cells else []


def _unwell(workers: list[Process]) -> list[str]:
    """A line for each process that is not ready or was restarted: the table above does not show it."""
    return [
        click.style(
            f"! {row.name}: {row.state}, pid {row.pid or '-'}, {plural(row.restarts, 'restart')}",
            fg="yellow",
        )
        for row in workers
        if row.restarts or row.state != "ready"
    ]


def _coloured(rows: list[str]) -> list[str]:
    """The state in its colour; click removes colours if stdout is not a terminal."""
    for word, colour in _COLOURS.items():
        rows = [row.replace(f"  {word} ", f"  {click.style(word, fg=colour)} ", 1) for row in rows]
    return rows
