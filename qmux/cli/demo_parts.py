"""The parts of ``qmux demo``: ports, sample services, and daemons with their logs in files."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import click
from aiohttp import web

from qmux.errors import QmuxError

STOP_TIMEOUT_S = 10.0
"""A daemon without user connections stops within a second; one that takes longer than this is killed."""

LOG_LINES_SHOWN = 20


class Ports(NamedTuple):
    """The ports that users and clients connect to."""

    web: int
    quic: int


class Part(NamedTuple):
    """A daemon of the demo."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


class DemoError(QmuxError):
    """A part of the demo did not work; the message has the last lines of its log."""


def free_ports() -> Ports:
    """Two ports that are free now. The kernel picks them, and picks others for the next bind to port 0."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        return Ports(tcp.getsockname()[1], udp.getsockname()[1])


async def sample_service(stack: AsyncExitStack, client: str) -> int:
    """A web service whose answer names its client. Returns its port."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"Hello from the service behind {client}: you asked for {request.path}\n")

    app = web.Application()
    app.router.add_get("/{path:.*}", hello)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port: int = runner.addresses[0][1]
    return port


async def daemon(stack: AsyncExitStack, folder: Path, name: str, module: str, *options: str) -> Part:
    """Start a daemon with its log in a file, in a session of its own: a terminal's Ctrl-C reaches the demo only."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module, "-c", str(folder / f"{name}.toml"), *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    part = Part(name, process, log)
    stack.push_async_callback(_stop, part)
    return part


async def _stop(part: Part) -> None:
    if part.process.returncode is None:
        part.process.terminate()
    try:
        await asyncio.wait_for(part.process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        click.echo(f"{part.name} did not stop within {STOP_TIMEOUT_S:.0f} s and was killed", err=True)
        part.process.kill()
        await part.process.wait()


def raise_if_ended(parts: Sequence[Part]) -> None:
    """Raises DemoError if a daemon has ended."""
    for part in parts:
        if part.process.returncode is not None:
            code = part.process.returncode
            raise DemoError(f"{part.name} ended with exit code {code}; its log:\n{last_lines([part])}")


def last_lines(parts: Sequence[Part]) -> str:
    """The last lines of their logs, each with the part's name."""
    shown = []
    for part in parts:
        lines = part.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        shown += [f"  {part.name}: {line}" for line in lines]
    return "\n".join(shown)
