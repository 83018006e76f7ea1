"""The servers of a client: their names are resolved again and again, and every address found has a link."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Never

from typing_extensions import override

from qmux.config.schema import ClientConfig, ServerAddress
from qmux.messages import Timings
from qmux.pool.rows import ServerRow
from qmux.protocol.frames import AppCode
from qmux.resolver import Resolver
from qmux.tasks import TaskSet, only_logged
from qmux.worker.client import resolving
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import UNREACHABLE, Failure, unresolved
from qmux.worker.client.holders import Holders
from qmux.worker.client.once import Once
from qmux.worker.client.reconnect import ReconnectPause
from qmux.worker.client.remote import Remote
from qmux.worker.client.server_link import LinkContext, LinkOwner, ServerLink
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)


class Servers(LinkOwner):
    """Links by address. ``on_given_up`` gets the exit code when an attempt with ``--once`` has come to nothing."""

    def __init__(
        self,
        config: ClientConfig,
        connector: Connector,
        timings: Timings,
        signal: ChangeSignal,
        resolver: Resolver,
        on_given_up: Callable[[int], None],
    ) -> None:
        self._config = config
        self._connector = connector
        self._timings = timings
        self._resolver = resolver
        self._on_given_up = on_given_up
        self._once = Once() if config.once else None
        self._holders: Holders[ServerLink] = Holders(signal)
        self._context = LinkContext(self, connector, self._holders, timings, signal)
        self._resolvers: dict[ServerAddress, asyncio.Task[None]] = {}
        self._unresolved: dict[ServerAddress, tuple[int, str]] = {}  # since when (wall clock, milliseconds), and why
        self._links: dict[Remote, ServerLink] = {}
        self._retired: set[ServerLink] = set()
        self._tasks = TaskSet(only_logged)

    def start(self) -> None:
        """Connect to the servers of the configuration."""
        self._follow()

    def configure(self, config: ClientConfig) -> None:
        """Follow another configuration, once started."""
        self._config = config
        if self._resolvers:
            self._follow()

    def links(self) -> list[ServerLink]:
        """Every link that may carry user connections."""
        return [*self._links.values(), *self._retired]

    def replace_all(self) -> None:
        """What we offer changed: register it everywhere."""
        for link in self._links.values():
            link.replace_all()

    def try_now(self) -> None:
        """A reload may have put right what failed: who pauses before the next attempt makes it now."""
        for link in self._links.values():
            link.try_now()

    def rows(self) -> list[ServerRow]:
        """For status: every server, those too whose name has no address yet."""
        linked = {remote.server for remote in self._links}
        nowhere = {server: why for server, why in self._unresolved.items() if server not in linked}
        rows = [link.row() for link in self.links()]
        return rows + [
            ServerRow(str(server), "", "unresolved", 0, 0.0, since, why) for server, (since, why) in nowhere.items()
        ]

    async def close(self) -> None:
        """End every connection; nothing is resolved any more."""
        await asyncio.gather(*(self._end_link(link) for link in self.links()))
        await self._tasks.close()

    # --- names and addresses ---

    def _follow(self) -> None:
        wanted = set(self._config.servers)
        for server in [server for server in self._resolvers if server not in wanted]:
            self._resolvers.pop(server).cancel()
            self._unresolved.pop(server, None)
            self._drop_links(server, ())
        for server in self._config.servers:
            if server not in self._resolvers:
                self._resolvers[server] = self._keep_resolving(server)

    def _keep_resolving(self, server: ServerAddress) -> asyncio.Task[None]:
        return self._tasks.keep(lambda: self._resolve(server), f"addresses of {server}")

    async def _resolve(self, server: ServerAddress) -> Never:
        """Keep a link to every address of ``server``. A name that stops resolving keeps what it had."""
        pause = self._pause()
        reported = ""
        while True:
            try:
                found = await resolving.addresses(server, self._resolver)
            except OSError as error:
                failure = unresolved(server.host, error.strerror or str(error))
                if failure.text != reported:
                    reported = failure.text
                    self._report_unresolved(server, failure)
                self._attempt_failed(server, failure)
                await asyncio.sleep(max(1.0, pause.next_s()))
                continue
            pause = self._pause()
            reported = ""
            self._unresolved.pop(server, None)
            self._drop_links(server, found)
            for address in found:
                remote = Remote(server, address)
                if remote not in self._links:
                    self._links[remote] = ServerLink(remote, self._context)
            await asyncio.sleep(self._config.resolve_interval_s)

    def _pause(self) -> ReconnectPause:
        return ReconnectPause(self._connector.reconnect_max_s, self._timings.stable_s)

    def _report_unresolved(self, server: ServerAddress, failure: Failure) -> None:
        since, _ = self._unresolved.get(server, (round(time.time() * 1000), ""))
        self._unresolved[server] = since, failure.text
        text = "cannot resolve server; trying again" if self.tries_again else "cannot resolve server"
        log.warning(text, extra={"server": server, "reason": failure.text})

    def _drop_links(self, server: ServerAddress, keep: Sequence[tuple[str, int]]) -> None:
        for remote in [each for each in self._links if each.server == server and each.address not in keep]:
            self._tasks.start(self._retire_link(self._links.pop(remote)), "end of a server link")

    async def _retire_link(self, link: ServerLink) -> None:
        """An address that its name has lost, or a server that a reload removed: connections there may finish."""
        self._holders.release(link)
        self._retired.add(link)
        try:
            await link.retire()
        finally:
            await self._end_link(link)

    async def _end_link(self, link: ServerLink) -> None:
        await link.close(AppCode.GOING_AWAY, "the client drops this server")
        self._retired.discard(link)
        self._holders.release(link)

    # --- what links tell ---

    @property
    @override
    def tries_again(self) -> bool:
        return self._once is None

    @override
    def reached(self) -> None:
        if self._once is not None:
            self._once.reached()

    @override
    def failed(self, link: ServerLink, failure: Failure) -> None:
        self._attempt_failed(link.remote, failure)

    @override
    def lost(self, link: ServerLink) -> None:
        if self._once is not None and not self._is_registered():
            self._on_given_up(UNREACHABLE)

    def _attempt_failed(self, way: ServerAddress | Remote, failure: Failure) -> None:
        if self._once is None or self._is_registered():
            return
        linked = {remote.server for remote in self._links}
        ways = {*self._links, *(server for server in self._resolvers if server not in linked)}
        if (exit_code := self._once.failed(way, failure, ways)) is not None:
            self._on_given_up(exit_code)

    def _is_registered(self) -> bool:
        return any(link.is_registered for link in self._links.values())
