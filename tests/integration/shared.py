"""One server and one client for many tests, with a service for each, so that no counter is another test's."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Handler, Service
from tests.waiting import until


class Tunnel:
    """``services``: name → further lines of its table. The client ``pod-1`` offers each that is not ``unserved``; its
    target, where ``targets`` says no other, is a port where nothing listens until a test starts its service there.
    """

    def __init__(
        self,
        deployment: Deployment,
        services: Mapping[str, str],
        targets: Mapping[str, str] | None = None,
        *,
        unserved: Collection[str] = (),
        client: Mapping[str, Any] | None = None,
        **server: Any,
    ) -> None:
        self.deployment = deployment
        self.ports = {name: free_port() for name in services}
        self.target_ports = {name: free_port() for name in services}
        self.targets = {name: f"127.0.0.1:{port}" for name, port in self.target_ports.items()} | dict(targets or {})
        self.binds = {name: f'bind = "127.0.0.1:{self.ports[name]}"\n{lines}' for name, lines in services.items()}
        offered = {name: target for name, target in self.targets.items() if name not in unserved}
        self.server: Daemon = deployment.server(self.binds, **server)
        self.client: Daemon = deployment.client("pod-1", offered, **(client or {})).until_ready()
        self.server.until_clients(1, connections=server.get("workers", 2))

    @contextlib.contextmanager
    def service(self, name: str, handler: Handler) -> Iterator[Service]:
        """What is behind service ``name`` meanwhile. No user connection may be left at its end."""
        with Service(handler, port=self.target_ports[name]) as service:
            yield service
            until(lambda: service.open == 0, f"no user connection of {name} is left")

    def row(self, name: str) -> dict[str, Any]:
        """What the server reports of one service; {} before it does."""
        rows = self.server.status().get("services", [])
        return next((row for row in rows if row["name"] == name), {})

    def refused(self, name: str) -> dict[str, int]:
        """Refused user connections of a service, by reason."""
        found: dict[str, int] = self.row(name).get("refused", {})
        return found

    def until_left(self) -> None:
        """For the end of a module: nothing of its tests is counted as there any more."""

        def is_empty() -> bool:
            rows = self.server.status().get("services", [])
            return bool(rows) and all(row["connections"] == 0 for row in rows)

        until(is_empty, "no user connection is left at the server")
