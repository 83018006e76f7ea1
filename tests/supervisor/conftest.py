"""A daemon that lives as long as a test module, for tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.supervisor.daemons import FakeDaemon, running


@pytest.fixture(scope="module")
def module_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    with running(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def daemon(module_daemon: FakeDaemon) -> Iterator[FakeDaemon]:
    """The module's daemon; a test sees only what is said and sent during it, and its configuration ends with it."""
    module_daemon.forget()
    yield module_daemon
    module_daemon.restore()
