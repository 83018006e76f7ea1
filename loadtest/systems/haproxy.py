"""HAProxy as a plain TCP proxy: one hop, no encryption. What a good proxy costs, not a tunnel."""

from __future__ import annotations

import subprocess
from typing import ClassVar

from loadtest import processes
from loadtest.system import Addresses
from loadtest.systems.base import Started

COMMAND_S = 10.0

CONFIG = """
global
  maxconn 2000
  nbthread {threads}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
"""

LISTEN = """
listen {kind}
  bind {bind}
  server backend {backend}
"""


class HAProxy(Started):
    """``haproxy`` in TCP mode on the users' host, with as many threads as QMux has workers."""

    name: ClassVar[str] = "haproxy"
    has_workers: ClassVar[bool] = True
    programs = ("haproxy",)

    def start(self, backends: Addresses) -> Addresses:
        users = self._setup.path.users
        binds = {kind: processes.free_address(users) for kind in backends}
        listen = [LISTEN.format(kind=kind, bind=binds[kind], backend=backend) for kind, backend in backends.items()]
        config = self._setup.directory / "haproxy.cfg"
        config.write_text(CONFIG.format(threads=self._setup.workers) + "".join(listen))
        self._group.start(users, "haproxy", [processes.program("haproxy"), "-db", "-f", str(config)])
        return binds

    def about(self) -> str:
        command = [processes.program("haproxy"), "-v"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True).stdout
        return f"{said.split()[2]}, TCP mode, threads: {self._setup.workers}; one hop and no encryption"
