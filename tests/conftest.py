"""What every test may use: ``needs`` names the programs beside QMux that a test runs, ``native`` the engine in Rust.

Tests that are coroutines run on an event loop of their own: the one that the workers use or, where they are marked
``asyncio_loop``, the one that the supervisor uses.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import shutil

import pytest
import uvloop

from tests.aio import run_test
from tests.depth import load_profile

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
"""Servers such as haproxy and sshd are here, where a plain user's PATH has nothing."""


def pytest_configure(config: pytest.Config) -> None:
    load_profile()
    config.addinivalue_line(
        "markers", "needs(*programs): skip where one of these programs is missing, and fail there where CI is set"
    )
    config.addinivalue_line(
        "markers", "native: skip where qmux_native is missing, and fail there where CI is set and cargo could build it"
    )
    config.addinivalue_line("markers", "asyncio_loop: runs on asyncio's own loop, as the supervisor does")
    config.addinivalue_line("markers", "serial: measures memory or pace, so it runs after the others and alone")
    config.addinivalue_line(
        "markers",
        "extended: the rest of the matrix and the longer faults; `make test-all` and CI run it, `make test` not",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """How tests are given to processes (pytest-xdist), which the command line may say otherwise (``--dist``)."""
    if config.getvalue("dist") != "load":
        return None
    from tests.schedule import Sharing  # here: this is called only where xdist is installed

    return Sharing(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs(*marker.args)
    if item.get_closest_marker("native") is not None:
        needs_native()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    is_supervisors = pyfuncitem.get_closest_marker("asyncio_loop") is not None
    factory = asyncio.new_event_loop if is_supervisors else uvloop.new_event_loop
    run_test(lambda: pyfuncitem.obj(**arguments), loop_factory=factory)
    return True


def needs(*programs: str) -> None:
    """Skip this test where one of ``programs`` is missing; fail where CI is set, since there it must have run."""
    missing = [program for program in programs if find_program(program) is None]
    if not missing:
        return
    reason = f"not installed: {' '.join(missing)} (make test installs them as root on Debian)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def needs_native() -> None:
    """Skip this test where the native engine is missing; fail where CI is set and a Rust toolchain, which nobody must
    have, is here: then it must have been built.
    """
    if importlib.util.find_spec("qmux_native") is not None:
        return
    reason = "qmux_native is not built: `make native` needs cargo"
    if os.environ.get("CI") and shutil.which("cargo") is not None:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def find_program(name: str) -> str | None:
    """The path of a program, also of one that only root has in its PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRECTORIES}")
