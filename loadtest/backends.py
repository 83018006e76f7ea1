"""The services behind the systems: an iperf3 server, and nginx with two static files."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from loadtest import processes
from loadtest.hosts import Host
from loadtest.system import Address, BackendKind, StartFailed, System

READY_S = 60.0
"""How long a system may take from its start until the backend answers through it."""

PROBE_S = 5.0
RETRY_S = 0.2
LISTENS_RETRY_S = 0.01

NGINX_WORKERS = max(1, len(os.sched_getaffinity(0)) // 4)
"""More on a machine with many CPUs, so that the backend is not what is measured."""

FILE_BYTES = {"1k": 1024, "64k": 65536}

NGINX = """
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen {address} backlog=4096;
    root {directory}/files;
  }}
}}
"""


class Backend:
    """A running service on ``host``."""

    def __init__(self, kind: BackendKind, host: Host, directory: Path) -> None:
        self.kind = kind
        self.address = processes.free_address(host)
        self._host = host
        self._directory = directory
        self._group = processes.Group(directory)
        if kind == "http":
            _write_files(directory / "files")

    def start(self) -> None:
        """Start it and wait until it listens. Raises StartFailed.

        It is not asked for anything: iperf3 takes a moment after every test before it takes the next one.
        """
        command = self._iperf3() if self.kind == "iperf3" else self._nginx()
        self._group.start(self._host, self.kind, command)
        deadline = time.monotonic() + READY_S
        while not processes.listens(self._host, self.address.port):
            if problem := self.ended():
                raise StartFailed(f"{problem}{processes.logs(self._directory)}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.kind} does not listen at {self.address}")
            time.sleep(LISTENS_RETRY_S)

    def stop(self) -> None:
        """End it."""
        self._group.stop()

    def ended(self) -> str:
        """Whether it has ended though it was not stopped, and how, or ""."""
        return self._group.ended()

    def restart(self) -> None:
        """Start it again, at the same address. Raises StartFailed."""
        self.stop()
        # A child that was killed holds the listening socket for a moment: it would be taken for the new one.
        deadline = time.monotonic() + READY_S
        while processes.listens(self._host, self.address.port):
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.kind} was stopped, and something still listens at {self.address}")
            time.sleep(LISTENS_RETRY_S)
        self.start()

    def wait_through(self, address: Address, host: Host, system: System) -> None:
        """Wait until the backend answers users on ``host`` at ``address``, where ``system`` serves them.

        Raises StartFailed where it does not within ``READY_S``, or a process of it ends.
        """
        probe: Callable[[Address], str] = _probe_iperf3 if self.kind == "iperf3" else _probe_http
        deadline = time.monotonic() + READY_S
        while problem := _inside(host, probe, address):
            if ended := system.ended():
                raise StartFailed(ended)
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.kind} does not answer at {address}: {problem}")
            time.sleep(RETRY_S)

    def _iperf3(self) -> list[str]:
        host, port = self.address
        return [processes.program("iperf3"), "--server", "--bind", host, "--port", str(port)]

    def _nginx(self) -> list[str]:
        config = self._directory / "nginx.conf"
        # As root nginx drops to a user that cannot read the folder of this run.
        user = "user root;" if os.getuid() == 0 else ""
        values = {"user": user, "workers": NGINX_WORKERS, "directory": self._directory, "address": self.address}
        config.write_text(NGINX.format(**values))
        return [processes.program("nginx"), "-c", str(config), "-p", str(self._directory)]


def _write_files(directory: Path) -> None:
    directory.mkdir()
    for name, size_bytes in FILE_BYTES.items():
        (directory / name).write_bytes(b"q" * size_bytes)


def _inside(host: Host, probe: Callable[[Address], str], address: Address) -> str:
    with host.inside():
        return probe(address)


def _probe_http(address: Address) -> str:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PROBE_S)
    try:
        connection.request("GET", "/1k")
        response = connection.getresponse()
        size_bytes = len(response.read())
        return "" if response.status == 200 and size_bytes == FILE_BYTES["1k"] else f"status {response.status}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def _probe_iperf3(address: Address) -> str:
    command = [processes.program("iperf3"), "--client", address.host, "--port", str(address.port), "--bytes", "64K"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_S:.0f} s"
    return "" if run.returncode == 0 else (run.stderr or run.stdout).strip()
