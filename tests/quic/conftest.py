"""One suite for every engine: ``engine`` is parametrised, ``world`` makes endpoints and connections with it.

Tests here are coroutines; ``world`` is closed on the loop of its test, and no socket may be left then.

``mixed``: the test runs with server and client on different engines in ``make test``, too; the others of ``ON_MIXED``
do so in ``make test-all``.

``at_pace(limit_s)``: the test has to act before a deadline of the engine's that no test can move. It begins anew where
it failed and the event loop stood still for longer than that meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time

import pytest

from qmux.quic.choose import load_engine
from qmux.quic.engine import Engine
from tests.aio import run_test
from tests.quic import certificates
from tests.quic.certificates import Pki
from tests.quic.harness import Mixed, World, no_descriptor_left


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return certificates.make(tmp_path_factory.mktemp("pki"))


ENGINES = ["aioquic", pytest.param("native", marks=pytest.mark.native)]
MIXED = ["aioquic-native", "native-aioquic"]
"""Server and client on different engines."""

ON_MIXED = {"test_connection", "test_streams", "test_relay", "test_resumption", "test_tls"}
ON_NATIVE = {"test_native", "test_dialling", "test_accepting", "test_driver"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        engines = ["native"] if module in ON_NATIVE else list(ENGINES)
        if module in ON_MIXED:
            marks = [pytest.mark.native]
            if metafunc.definition.get_closest_marker("mixed") is None:
                marks.append(pytest.mark.extended)
            engines += [pytest.param(pair, marks=marks) for pair in MIXED]
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    server, _, client = request.param.partition("-")
    return Mixed(load_engine(server), load_engine(client)) if client else load_engine(server)


@pytest.fixture
def world(engine: Engine, pki: Pki) -> World:
    return World(engine, pki)


ATTEMPTS = 4
LOOK_S = 0.01
NOTICED_S = 0.005
"""Who shares a processor stands still for some milliseconds again and again; less than this is the timer's."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "at_pace(limit_s): tried anew where the loop stood still for longer")
    config.addinivalue_line("markers", "mixed: with server and client on different engines in `make test`, too")


class Pace:
    """For how long the event loop stood still, all times together."""

    def __init__(self) -> None:
        self.lost_s = 0.0

    async def look(self) -> None:
        while True:
            before = time.monotonic()
            try:
                await asyncio.sleep(LOOK_S)  # how late it returns is what is measured
            finally:  # also where the test fails as soon as the loop goes on
                late_s = time.monotonic() - before - LOOK_S
                self.lost_s += late_s if late_s > NOTICED_S else 0.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    marker = pyfuncitem.get_closest_marker("at_pace")
    for left in reversed(range(ATTEMPTS if marker else 1)):
        pace = Pace()
        try:
            run_on_a_loop(pyfuncitem, pace)
        except TimeoutError:  # a test that hangs has missed no deadline of milliseconds
            raise
        except Exception:
            if not left or marker is None or pace.lost_s < marker.args[0]:
                raise
            if (world := pyfuncitem.funcargs.get("world")) is not None:
                pyfuncitem.funcargs["world"] = World(world.engine, world.pki)
        else:
            break
    return True


def run_on_a_loop(pyfuncitem: pytest.Function, pace: Pace) -> None:
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def body() -> None:
        looking = asyncio.ensure_future(pace.look())
        await asyncio.sleep(0)  # it begins
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            if (world := pyfuncitem.funcargs.get("world")) is not None:
                await world.close()

    with no_descriptor_left():
        run_test(body)
