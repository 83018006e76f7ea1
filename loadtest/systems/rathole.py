"""rathole, plain TCP and with Noise: the tunnel in Rust that QMux is most often compared with.

``python -m loadtest --prepare`` builds it. Plain rathole does not encrypt at all; Noise does, as QMux always does. Both
run with their defaults, on as many threads as there are CPUs.
"""

from __future__ import annotations

import re
import subprocess
from typing import ClassVar

from loadtest import processes
from loadtest.hosts import Host
from loadtest.system import Addresses, StartFailed
from loadtest.systems.base import Started

COMMAND_S = 10.0
TOKEN = "load-test"  # between two processes of this machine, for the length of a run
PATTERN = "Noise_NK_25519_ChaChaPoly_BLAKE2s"  # rathole's default

SERVER = """
[server]
bind_addr = "{control}"
default_token = "{token}"
{transport}
"""

CLIENT = """
[client]
remote_addr = "{control}"
default_token = "{token}"
{transport}
"""

SERVICE = """
[{side}.services.{kind}]
{key} = "{address}"
"""


class Rathole(Started):
    """``rathole`` server and client, without encryption."""

    name: ClassVar[str] = "rathole"
    programs = ("rathole",)
    encrypted: ClassVar[bool] = False

    def start(self, backends: Addresses) -> Addresses:
        users, service = self._setup.path.users, self._setup.path.service
        binds = {kind: processes.free_address(users) for kind in backends}
        values = {"control": processes.free_address(users), "token": TOKEN}
        server, client = self._transports()
        self._side(users, "server", SERVER.format(transport=server, **values), "bind_addr", binds)
        self._side(service, "client", CLIENT.format(transport=client, **values), "local_addr", backends)
        return binds

    def about(self) -> str:
        found = re.search(r"\d+\.\d+\.\d+", self._output("--version"))
        version = found[0] if found else "unknown version"
        return f"{version}, {PATTERN if self.encrypted else 'plain TCP, no encryption'}"

    def _transports(self) -> tuple[str, str]:
        if not self.encrypted:
            return "", ""
        # Two lines of heading, each followed by its key.
        lines = [line.strip() for line in self._output("--genkey").splitlines() if line.strip()]
        private, public = lines[1], lines[3]
        noise = '[{side}.transport]\ntype = "noise"\n[{side}.transport.noise]\n{key} = "{value}"\n'
        return (
            noise.format(side="server", key="local_private_key", value=private),
            noise.format(side="client", key="remote_public_key", value=public),
        )

    def _side(self, host: Host, side: str, config: str, key: str, addresses: Addresses) -> None:
        services = [SERVICE.format(side=side, kind=kind, key=key, address=each) for kind, each in addresses.items()]
        path = self._setup.directory / f"{side}.toml"
        path.write_text(config + "".join(services))
        self._group.start(host, side, [processes.program("rathole"), f"--{side}", str(path)])

    def _output(self, argument: str) -> str:
        command = [processes.program("rathole"), argument]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if ran.returncode != 0:
            raise StartFailed(f"rathole {argument}: {ran.stderr.strip()}")
        return ran.stdout


class RatholeNoise(Rathole):
    """The same with Noise: encrypted and with an authenticated server."""

    name = "rathole-noise"
    encrypted = True
