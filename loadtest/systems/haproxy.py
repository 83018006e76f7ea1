"""HAProxy as a plain TCP proxy: one hop, no encryption. What a good proxy costs, not a tunnel."""

from __future__ import annotations

import subprocess

from loadtest import processes
from loadtest.system import Address, Options

CONFIG = """
global
  maxconn 2000
  nbthread {threads}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen load
  bind {bind}
  server backend {backend}
"""


class HAProxy:
    """``haproxy`` in TCP mode with as many threads as QMux has workers."""

    name = "haproxy"

    def __init__(self, options: Options) -> None:
        self._options = options
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: Address) -> Address:
        bind = processes.free_address()
        config = self._options.directory / "haproxy.cfg"
        config.write_text(CONFIG.format(threads=self._options.workers, bind=bind, backend=backend))
        command = [processes.program("haproxy"), "-db", "-f", str(config)]
        self._processes.append(processes.start(command, self._options.directory / "haproxy.log"))
        return bind

    def stop(self) -> None:
        # A proxy told to stop softly waits for its connections; nothing here is worth that.
        for process in self._processes:
            process.kill()
        processes.stop(self._processes)
        self._processes.clear()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def about(self) -> str:
        command = [processes.program("haproxy"), "-v"]
        version = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[2]
        return f"{version}, TCP mode, {self._options.workers} threads: one hop and no encryption"
