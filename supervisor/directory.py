"""The runtime directory while the daemon runs: what is in it, and putting it back when somebody removed it.

Without it the daemon would serve on and nobody would find it: ``qmux status`` and ``reload`` look there, and a second
start would take the place.
"""

from __future__ import annotations

import logging

from qmux.bus import BusProxy
from qmux.errors import StartError
from qmux.paths import text_of
from supervisor.daemon import Daemon

log = logging.getLogger(__name__)


class Directory:
    """The bus and ``daemon.json``; the admin process makes its own socket."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._bus: BusProxy | None = None
        self._lost_because = ""

    def fill(self) -> None:
        """Open the bus and write who we are. Raises StartError."""
        runtime, owner = self._daemon.runtime, self._daemon.owner
        self.close()
        self._bus = BusProxy(text_of(runtime.path), owner.uid, owner.gid)
        runtime.write_identity(self._daemon.identity())

    def keep(self, has_admin: bool) -> bool:
        """Look whether everything is in its place, and put it back where it is not. True: that was done just now.

        Workers connect to the new bus by themselves. ``has_admin``: its socket must be there too.
        """
        runtime = self._daemon.runtime
        if runtime.is_whole(has_admin):
            self._lost_because = ""
            return False
        try:
            runtime.restore()
            self.fill()
        except (StartError, OSError) as error:
            if self._lost_because != str(error):  # it is tried each second, and said once
                self._lost_because = str(error)
                log.error(
                    "the runtime directory was removed and cannot be put back: users are served, but `qmux status` "
                    "and `qmux reload` do not find this daemon; SIGHUP still reloads",
                    extra={"runtime_dir": runtime.path, "reason": error},
                )
            return False
        log.warning("the runtime directory was removed: put back", extra={"runtime_dir": runtime.path})
        return True

    def close(self) -> None:
        """End the bus."""
        if self._bus is not None:
            self._bus.stop()
