"""``qmux demo``: start the parts, send requests through the tunnel, stop the parts."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click

from qmux.cli.demo_parts import DemoError, Part, daemon, free_ports, last_lines, raise_if_ended, sample_service
from qmux.pki import authority

CLIENTS = ("client-1", "client-2")

ANSWER_TIMEOUT_S = 30.0
"""From the start to an answer through each client; about 2 s on two idle cores."""

RETRY_S = 0.1

MAX_PARENT_BYTES = 40
"""Below it come the demo's folder, ``run/client-1`` and a socket's name: some 50 of the 107 bytes that one may have."""

SERVER_TOML = """\
[server]
bundle = "server.pem"
runtime_dir = "run/server"
state_dir = "state/server"
stop_after = "2s"

[quic]
bind = "127.0.0.1:{quic_port}"

[services.web]
bind = "127.0.0.1:{web_port}"
balance = "round-robin"
"""
CLIENT_TOML = """\
[client]
servers = ["127.0.0.1:{quic_port}"]
bundle = "{name}.pem"
instance = "{name}"
runtime_dir = "run/{name}"
state_dir = "state/{name}"
stop_after = "2s"

[services.web]
target = "127.0.0.1:{target_port}"
"""


async def run(*, once: bool) -> int:
    """Run the whole demo. Raises DemoError if a part fails."""
    started_at = time.monotonic()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmux-demo-", dir=_parent())))
        parts = await _start(stack, folder)
        working = asyncio.ensure_future(_answers(parts.url, parts.all))
        await _either(working, stopped)
        if not working.cancelled():
            _show_answers(parts.url, folder, started_at, working.result())
            if not once:
                await _until_stopped(parts.all, stopped)
        click.echo("stopping")
    return 0


class _Parts(NamedTuple):
    url: str
    all: list[Part]


async def _start(stack: AsyncExitStack, folder: Path) -> _Parts:
    ports = free_ports()
    click.echo(f"QMux demo in {folder} (removed at the end)")
    authority.init(folder)
    authority.issue_server(folder, ["server", "127.0.0.1", "localhost"])
    (folder / "server.toml").write_text(SERVER_TOML.format(quic_port=ports.quic, web_port=ports.web))
    parts = [await daemon(stack, folder, "server", "qmux.cli.qmuxd", "--workers", "auto")]
    click.echo(f"  server    qmuxd: users at 127.0.0.1:{ports.web} (TCP), clients at 127.0.0.1:{ports.quic} (UDP)")
    for name in CLIENTS:
        authority.issue_client(folder, name, ["web"])
        target = await sample_service(stack, name)
        text = CLIENT_TOML.format(name=name, quic_port=ports.quic, target_port=target)
        (folder / f"{name}.toml").write_text(text)
        parts.append(await daemon(stack, folder, name, "qmux.cli.qmuxc"))
        click.echo(f'  {name}  qmuxc: serves "web" from 127.0.0.1:{target}')
    return _Parts(f"http://127.0.0.1:{ports.web}/", parts)


def _parent() -> str | None:
    """The user's temporary directory, or /tmp if its name is too long for the Unix sockets below it (unix(7))."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= MAX_PARENT_BYTES else "/tmp"


async def _answers(url: str, parts: Sequence[Part]) -> dict[str, float]:
    """Ask until the service behind each client has answered: each text, and how long its request took in seconds."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    problem: object = None
    answers: dict[str, float] = {}
    is_first = True
    connector = aiohttp.TCPConnector(force_close=True)  # another connection may go to another client
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0), connector=connector) as session:
        while time.monotonic() < deadline:
            raise_if_ended(parts)
            try:
                asked_at = time.monotonic()
                text = await _get(session, url)
                # The first request may have waited for a client; the next ones show what a request takes.
                if not is_first:
                    answers.setdefault(text, time.monotonic() - asked_at)
                is_first = False
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = error or type(error).__name__
            if len(answers) == len(CLIENTS):
                return answers
            await asyncio.sleep(RETRY_S)
    what = f"{url} answers from {len(answers)} of {len(CLIENTS)} clients" if answers else f"no answer from {url}"
    raise DemoError(f"{what} within {ANSWER_TIMEOUT_S:.0f} s ({problem})\n{last_lines(parts)}")


async def _get(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url, raise_for_status=True) as response:
        return await response.text()


def _show_answers(url: str, folder: Path, started_at: float, answers: dict[str, float]) -> None:
    for text, took_s in answers.items():
        click.echo(f"  GET {url} through the tunnel, {took_s * 1000:.0f} ms: {text.strip()}")
    click.echo(f"The tunnel answered {time.monotonic() - started_at:.1f} s after the start.")
    click.echo(f"Point a browser or curl at:  {url}")
    click.echo(f"See who serves it with:      qmux status -c {folder / 'server.toml'}")
    click.echo("Stop it with Ctrl-C.")


async def _until_stopped(parts: Sequence[Part], stopped: asyncio.Event) -> None:
    """Wait for a signal. Raises DemoError if a daemon ends first."""
    ends = [asyncio.ensure_future(part.process.wait()) for part in parts]
    try:
        await _either(asyncio.ensure_future(asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)), stopped)
        if not stopped.is_set():
            raise_if_ended(parts)
    finally:
        for end in ends:
            end.cancel()


async def _either(work: asyncio.Future[Any], stopped: asyncio.Event) -> None:
    """Wait for the work, or for a signal, which cancels it."""
    waiting = asyncio.ensure_future(stopped.wait())
    await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
