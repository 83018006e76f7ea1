"""The way in for the command line: run a daemon until it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from qmux import log as qmux_log
from qmux.errors import StartError
from qmux.messages import Timings

if TYPE_CHECKING:
    from qmux.config.loaded import Loaded
    from supervisor.settings import Settings

log = logging.getLogger(__name__)


def run(load: Callable[[], Loaded], settings: Settings | None = None) -> int:
    """Run the daemon that ``load`` describes; blocks, and returns the exit code.

    ``load`` is called at the start and again for each reload. Raises ConfigError, CertificateError or StartError before
    anything serves, and QmuxError for what a child found fatal.
    """
    if sys.platform != "linux":
        raise StartError(
            f"QMux's daemons need Linux (socket steering, descriptors over Unix sockets); this is {sys.platform}"
        )
    # Only now: these import modules that other systems do not have.
    from supervisor.daemon import Daemon
    from supervisor.privileges import raise_file_limit
    from supervisor.settings import from_environment

    qmux_log.log_uncaught()
    loaded = load()
    raise_file_limit()
    daemon = Daemon.prepare(loaded, settings or from_environment())
    try:
        for warning in loaded.warnings:
            log.warning(warning)
        if (timings := daemon.settings.timings) != Timings():
            log.warning("timings for tests are in force", extra={"timings": timings})
        return asyncio.run(_serve(load, daemon))
    finally:
        daemon.close()


async def _serve(load: Callable[[], Loaded], daemon: object) -> int:
    from supervisor.daemon import Daemon
    from supervisor.master import Supervisor

    assert isinstance(daemon, Daemon)
    return await Supervisor(load, daemon).serve()
