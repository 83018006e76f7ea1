"""The real admin process, over a real control channel and a real bus."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qmux import bus, channel
from qmux.messages import Configured, Down, Failed, Heartbeat, Peers, Ready, Reply, Request, Stop, Up
from tests.admin.made import configure, report, row, server_config, table, whole_pass, worker
from tests.aio import until


class Supervisor:
    """The other end of the admin process's channel."""

    def __init__(self, directory: Path) -> None:
        ours, theirs = channel.pair()
        self.directory = directory
        self.messages: list[Up] = []
        self.closed = False
        self.on_request: Callable[[Request], None] = lambda request: None
        with (directory / "admin.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qmux.admin", str(theirs.fileno()), "admin"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._channel = channel.supervisor_end(ours, self._received, self._ended)

    def _received(self, message: Up, fds: list[int]) -> None:
        assert not fds
        self.messages.append(message)
        if isinstance(message, Request):
            self.on_request(message)

    def _ended(self) -> None:
        self.closed = True

    def send(self, message: Down, fds: tuple[int, ...] = ()) -> None:
        self._channel.send(message, fds)

    def got(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def die(self) -> None:
        self._channel.close()

    async def ask(self, path: str, body: object = None, method: str = "") -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self.directory / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            wanted = method or ("GET" if body is None else "POST")
            async with session.request(wanted, f"http://qmux{path}", json=body) as response:
                kind = response.content_type
                return response.status, await (response.json() if "json" in kind else response.text())

    def log(self) -> str:
        return (self.directory / "admin.log").read_text()


@asynccontextmanager
async def supervised(directory: Path) -> AsyncIterator[Supervisor]:
    proxy = bus.BusProxy(str(directory), os.getuid(), os.getgid())
    supervisor = Supervisor(directory)
    try:
        yield supervisor
    finally:
        supervisor.die()
        supervisor.process.kill()
        supervisor.process.wait()
        proxy.stop()


async def ready(supervisor: Supervisor) -> None:
    supervisor.send(configure(server_config(), str(supervisor.directory)))
    supervisor.send(table(worker(0), worker(1)))
    await until(lambda: supervisor.got(Ready), 20.0, f"ready: {supervisor.log()}")


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def exit_code(supervisor: Supervisor, timeout_s: float = 20.0) -> int:
    await until(lambda: supervisor.process.poll() is not None, timeout_s, "the process ends")
    code = supervisor.process.returncode
    assert code is not None
    return code


async def test_it_listens_before_it_is_ready_and_only_for_owner_and_group(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        assert supervisor.got(Configured) == [Configured(1)]
        assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o660
        status, answer = await supervisor.ask("/v1/status")
        assert status == 200
        assert answer["server"]["source"] == "/etc/qmux/server.toml"
        assert (await supervisor.ask("/healthz")) == (200, {"ok": True})
        await until(lambda: len(supervisor.got(Heartbeat)) >= 2, 15.0, "heartbeats")


async def test_what_workers_publish_is_seen_within_a_second(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        publisher = bus.Publisher(bus.endpoints(str(tmp_path))[0])

        async def clients() -> list[Any]:
            return list((await supervisor.ask("/v1/status"))[1]["clients"])

        async def first() -> list[Any]:
            publisher.send(whole_pass(0, row(1)))  # the first ones may be lost: the subscription is under way
            publisher.send(report(0, active=5))
            return await clients()

        async def nobody() -> bool:
            return not await clients()

        assert [client["client"] for client in await until(first, 30.0, "a client")] == ["pod-1"]
        supervisor.send(table(worker(1)))
        await until(nobody, 30.0, "the rows of a worker that died go")
        publisher.close()


async def test_a_reload_is_passed_on_and_its_answer_back(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)

        def answer(request: Request) -> None:
            words = f"dry_run={request.dry_run} full={request.full}"
            supervisor.send(Reply(request.request_id, ok=not request.full, lines=[words], exit_code=request.full * 3))

        supervisor.on_request = answer
        answers = await asyncio.gather(
            supervisor.ask("/v1/reload", {"dry_run": True}),
            supervisor.ask("/v1/reload", {"full": True}),
            supervisor.ask("/v1/reload", {}),
        )
        assert [status for status, _ in answers] == [200, 200, 200]
        assert [body["lines"] for _, body in answers] == [
            ["dry_run=True full=False"],
            ["dry_run=False full=True"],
            ["dry_run=False full=False"],
        ]
        assert [(body["ok"], body["exit_code"]) for _, body in answers] == [(True, 0), (False, 3), (True, 0)]


@pytest.mark.parametrize("body", ["{", "[1]", '"\x9b"', "[" * 60_000, '{"a":' * 12_000])
async def test_a_request_that_is_none_is_answered_and_leaves_no_word_in_the_log(tmp_path: Path, body: str) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        before = supervisor.log()
        connector = aiohttp.UnixConnector(str(tmp_path / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://qmux/v1/reload", data=body.encode()) as response,
        ):
            assert response.status == 400
            assert "expected a JSON object" in await response.text()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "admin.sock"))
        writer.write(b"\x9b[2J GET\r\n\x00: \x1b\r\n\r\n")
        assert b"400" in await reader.readline()
        writer.close()
        assert supervisor.log() == before


async def test_a_supervisor_that_stands_still_is_told_soon(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        _, body = await asyncio.wait_for(supervisor.ask("/v1/reload", {}), 15.0)  # without a Table or a Reply
        assert (body["ok"], body["exit_code"]) == (False, 5)
        assert "the supervisor stands still" in body["lines"][0]
        assert (await supervisor.ask("/healthz")) == (503, {"ok": False})
        supervisor.send(table(worker(0), worker(1)))

        async def healthy() -> bool:
            return (await supervisor.ask("/healthz"))[0] == 200

        await until(healthy, 15.0, "healthy again")


async def test_only_so_many_reloads_wait(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        asks = [asyncio.create_task(supervisor.ask("/v1/reload", {})) for _ in range(20)]
        await until(lambda: sum(ask.done() for ask in asks) == 4, 30.0, "four are turned away")
        await until(lambda: len(supervisor.got(Request)) == 16, 15.0, "all others wait")
        for ask in asks:
            if ask.done():
                _, body = ask.result()
                assert not body["ok"]
                assert "16 reloads are waiting already" in body["lines"][0]
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)


async def test_bad_requests_are_refused_and_harm_nothing(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        assert (await supervisor.ask("/v1/nothing"))[0] == 404
        assert (await supervisor.ask("/v1/reload", method="GET"))[0] == 405
        assert (await supervisor.ask("/v1/reload", [1]))[0] == 400
        assert (await supervisor.ask("/v1/reload", method="POST"))[0] == 400
        assert (await supervisor.ask("/v1/reload", {"x": "y" * 200_000}))[0] == 413
        assert (await supervisor.ask("/v1/status"))[0] == 200
        assert not supervisor.got(Request)
        assert not supervisor.got(Failed)


async def test_a_reloaded_configuration_replaces_the_one_before(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        supervisor.send(configure(server_config("web", "api"), str(tmp_path), version=2))
        await until(lambda: Configured(2) in supervisor.got(Configured), 15.0, "configured again")
        _, answer = await supervisor.ask("/v1/status")
        assert [service["name"] for service in answer["services"]] == ["web", "api"]
        assert len(supervisor.got(Ready)) == 1


async def test_a_configuration_that_does_not_decode_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        broken = configure(server_config(), str(tmp_path), version=2)
        broken.config = b"\x80"
        supervisor.send(broken)
        await until(lambda: len(supervisor.got(Configured)) == 2, 15.0, "an answer")
        assert supervisor.got(Configured)[1].error
        assert (await supervisor.ask("/v1/status"))[0] == 200


async def test_messages_for_workers_mean_nothing_and_leak_nothing(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        pid = supervisor.process.pid
        before = open_descriptors(pid)
        for _ in range(50):
            supervisor.send(Peers([], [1]), (0,))
        supervisor.send(configure(server_config(), str(tmp_path), version=2))
        await until(lambda: Configured(2) in supervisor.got(Configured), 15.0, "everything was read")
        assert open_descriptors(pid) < before + 10  # of the 50; some of its own may come and go


async def test_an_old_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        supervisor.process.kill()  # it leaves its socket behind
        await exit_code(supervisor)
        assert (tmp_path / "admin.sock").exists()
        second = Supervisor(tmp_path)
        await ready(second)
        assert (await second.ask("/v1/status"))[0] == 200
        second.send(Stop())
        assert await exit_code(second) == 0
    (tmp_path / "admin.sock").unlink(missing_ok=True)
    (tmp_path / "admin.sock").write_text("precious")
    async with supervised(tmp_path) as supervisor:
        supervisor.send(configure(server_config(), str(tmp_path)))
        assert await exit_code(supervisor) == 4
        await until(lambda: supervisor.got(Failed), 15.0, "it says why")
        assert (
            "admin.sock: the admin socket cannot be made: Address already in use" in supervisor.got(Failed)[0].message
        )
        assert (tmp_path / "admin.sock").read_text() == "precious"


@pytest.mark.parametrize("asking", [False, True])
async def test_it_ends_with_its_supervisor(tmp_path: Path, asking: bool) -> None:
    async with supervised(tmp_path) as supervisor:
        await ready(supervisor)
        ask = asyncio.create_task(supervisor.ask("/v1/reload", {})) if asking else None
        if asking:
            await until(lambda: supervisor.got(Request), 15.0, "the request is under way")
        supervisor.die()
        assert await exit_code(supervisor) == 1
        if ask is not None:
            with pytest.raises(aiohttp.ClientError):
                await ask
