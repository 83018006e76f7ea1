"""What only the native engine has: a type stub that is true, and a core that rests when nothing runs."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from tests.aio import until
from tests.quic.certificates import Pki
from tests.quic.harness import World

pytestmark = pytest.mark.native


def test_the_stub_says_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed"
    allowed.write_text("qmux_native.qmux_native\n")  # the binary inside of maturin's package
    command = [sys.executable, "-m", "mypy.stubtest", "qmux_native", "--allowlist", str(allowed)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stdout


def test_the_stub_that_is_installed_is_this_one() -> None:
    spec = importlib.util.find_spec("qmux_native")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).with_name("__init__.pyi").read_text()
    assert installed == (Path(__file__).parents[2] / "native" / "qmux_native.pyi").read_text(), "build it again"


async def test_nothing_is_left_of_what_was_closed(world: World) -> None:
    server = world.serve()
    pairs = [await world.pair(server) for _ in range(5)]
    relayed = [await world.relayed(pair) for pair in pairs]
    driver = world.engine._driver  # type: ignore[attr-defined]
    assert driver.core.counts() == (6, 10, 10, 0)
    for pair in pairs:
        pair.client.connection.close(0, "")
    await asyncio.wait([relay.done for both in relayed for relay in (both.server, both.client)], timeout=15)
    await until(lambda: driver.core.counts() == (1, 0, 0, 0))
    server.endpoint.close(0, "")
    assert driver.core.counts() == (0, 0, 0, 0)
    assert not driver.connections
    assert not driver.relays
    assert not driver._watching


def test_the_context_of_connections_that_are_gone_is_freed(pki: Pki) -> None:
    """It holds the core's client, whose check must not be its own: the collector does not see through the core."""
    native = pytest.importorskip("qmux.quic.native_engine.credentials")
    context = native.ClientContext(native.Credentials(pki.client), "localhost")
    gone = weakref.ref(context)
    del context
    gc.collect()
    assert gone() is None
