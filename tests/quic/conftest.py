"""One suite for every engine: ``engine`` is parametrised, ``world`` makes endpoints and connections with it.

Tests here are coroutines; each runs on an event loop of its own, and ``world`` is closed on that loop.
"""

from __future__ import annotations

import asyncio
import inspect

import pytest

from qmux.quic.choose import load_engine
from qmux.quic.engine import Engine
from tests.aio import run
from tests.quic import certificates
from tests.quic.certificates import Pki
from tests.quic.harness import Mixed, World, no_descriptor_left


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return certificates.make(tmp_path_factory.mktemp("pki"))


ENGINES = ["aioquic", pytest.param("native", marks=pytest.mark.native)]
MIXED = [pytest.param(name, marks=pytest.mark.native) for name in ("aioquic-native", "native-aioquic")]
"""Server and client on different engines."""

ON_MIXED = {"test_connection", "test_streams", "test_relay", "test_resumption", "test_tls"}
ON_NATIVE = {"test_native", "test_dialling", "test_accepting"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        engines = ENGINES + MIXED if module in ON_MIXED else ["native"] if module in ON_NATIVE else ENGINES
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    server, _, client = request.param.partition("-")
    return Mixed(load_engine(server), load_engine(client)) if client else load_engine(server)


@pytest.fixture
def world(engine: Engine, pki: Pki) -> World:
    return World(engine, pki)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    failures: list[dict[str, object]] = []

    async def body() -> None:
        # The loop would only log what a callback raises, and the test would go on.
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            if (world := pyfuncitem.funcargs.get("world")) is not None:
                await world.close()

    with no_descriptor_left():
        run(body())
    assert failures == []
    return True
