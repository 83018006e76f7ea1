"""What one daemon is from its start to its end: role, directories, keys, and how its children are launched."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import msgspec

import qmux
from qmux import bus
from qmux.config.directories import runtime_dir, state_dir
from qmux.config.loaded import Loaded
from qmux.config.schema import Config, ServerConfig
from qmux.config.usable import worker_count
from qmux.messages import Configure, DaemonIdentity
from qmux.paths import text_of
from qmux.pki.material import Keys, Material, Role
from supervisor.generation import Generation, Slots, first_generation
from supervisor.logfile import LogFile
from supervisor.privileges import Owner, owner_of, try_interpreter
from supervisor.process import Launch
from supervisor.runtime import RuntimeDir, daemon_keys, random_keys
from supervisor.settings import Settings

SERVER_ID_BYTES = 16
"""Drawn at each start: how a client tells two ways to one server from two servers."""

_encoder = msgspec.msgpack.Encoder()
_NO_MATERIAL = Material(b"", b"", b"")
_NO_KEYS = Keys(b"", b"", b"")


@dataclass
class Daemon:
    """Facts and resources. ``loaded`` and ``version`` (of the configuration) change with a reload."""

    generation: Generation
    slots: Slots
    settings: Settings
    log: LogFile
    owner: Owner
    runtime: RuntimeDir
    keys: Keys
    workers: int
    version: int = 1
    server_id: bytes = field(default_factory=lambda: os.urandom(SERVER_ID_BYTES))
    started_at: float = field(default_factory=time.time)

    @classmethod
    def prepare(cls, loaded: Loaded, settings: Settings) -> Daemon:
        """Everything that a daemon needs before sockets and processes. Raises StartError."""
        config = loaded.config
        log = LogFile(config.log)
        try:
            owner = owner_of(config.process, _role(config))
            runtime = RuntimeDir(runtime_dir(config), owner, settings.lock_wait_s)
            try_interpreter(owner, _role(config), str(runtime.path))
            keys = daemon_keys(state_dir(config)) if isinstance(config, ServerConfig) else random_keys()
        except BaseException:
            log.close()
            raise
        slots, workers = Slots(), worker_count(config)
        return cls(first_generation(loaded, workers, slots), slots, settings, log, owner, runtime, keys, workers)

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with its certificates."""
        return self.generation.loaded

    @loaded.setter
    def loaded(self, loaded: Loaded) -> None:
        self.generation.loaded = loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    @property
    def role(self) -> Role:
        """Which of the two daemons this is."""
        return _role(self.config)

    @property
    def program(self) -> str:
        """What the user calls it."""
        return "qmuxd" if self.role == "server" else "qmuxc"

    @property
    def launch(self) -> Launch:
        """How children are started."""
        return Launch(
            self.settings.command, self.owner, self.runtime.lock_fd, lambda: self.log.fd, self.settings.silent_exit_s
        )

    def configure(self, index: int = -1, slot: int = -1, epoch: int = 0) -> Configure:
        """The configuration for a worker; without a slot that of the admin process, which gets no secret."""
        publish, subscribe = bus.endpoints(text_of(self.runtime.path))
        is_worker = slot >= 0
        return Configure(
            version=self.version,
            role=self.role,
            config=_encoder.encode(self.config),
            material=self.loaded.material if is_worker else _NO_MATERIAL,
            keys=self.keys if is_worker else _NO_KEYS,
            server_id=self.server_id,
            generation=self.generation.number,
            index=index,
            slot=slot,
            epoch=epoch,
            workers=self.workers,
            runtime_dir=text_of(self.runtime.path),
            bus_publish=publish,
            bus_subscribe=subscribe,
            timings=self.settings.timings,
        )

    def identity(self) -> DaemonIdentity:
        """What does not change, for ``daemon.json`` and ``qmux status``."""
        return DaemonIdentity(
            role=self.role,
            pid=os.getpid(),
            source=self.config.source,
            version=qmux.__version__,
            started_at=self.started_at,
            admin_socket=text_of(self.runtime.path / "admin.sock"),
        )

    def close(self) -> None:
        """Give up directory, lock and log file."""
        self.runtime.close()
        self.log.close()


def _role(config: Config) -> Role:
    return "server" if isinstance(config, ServerConfig) else "client"
