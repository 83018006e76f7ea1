"""rathole, plain TCP and with Noise: the tunnel in Rust that QMux is most often compared with.

Installed with ``cargo install rathole --no-default-features --features server,client,noise`` (its default features need
a ``time`` crate that newer compilers refuse). Plain rathole does not encrypt at all; Noise does, as QMux always does.
"""

from __future__ import annotations

import re
import subprocess

from loadtest import processes
from loadtest.system import Address, Options, StartFailed

COMMAND_S = 10.0
TOKEN = "load-test"  # between two processes of this machine, for the length of a run
PATTERN = "Noise_NK_25519_ChaChaPoly_BLAKE2s"  # rathole's default

SERVER = """
[server]
bind_addr = "{control}"
default_token = "{token}"
{transport}
[server.services.load]
bind_addr = "{bind}"
"""

CLIENT = """
[client]
remote_addr = "{control}"
default_token = "{token}"
{transport}
[client.services.load]
local_addr = "{backend}"
"""


class Rathole:
    """``rathole`` server and client, without encryption."""

    name = "rathole"
    encrypted = False

    def __init__(self, options: Options) -> None:
        self._options = options
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: Address) -> Address:
        bind, control = processes.free_address(), processes.free_address()
        values = {"bind": bind, "control": control, "backend": backend, "token": TOKEN}
        server, client = self._transports()
        self._run("server", SERVER.format(transport=server, **values))
        self._run("client", CLIENT.format(transport=client, **values))
        return bind

    def stop(self) -> None:
        processes.stop(list(reversed(self._processes)))
        self._processes.clear()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

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

    def _run(self, side: str, config: str) -> None:
        path = self._options.directory / f"{side}.toml"
        path.write_text(config)
        log = self._options.directory / f"{side}.log"
        self._processes.append(processes.start([processes.program("rathole"), f"--{side}", str(path)], log))

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
