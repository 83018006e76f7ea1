"""The checks of a configuration that depend on this machine: the engine, which tries the key, and the workers' user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from qmux.config.directories import state_dir
from qmux.config.loaded import Loaded
from qmux.config.schema import ClientConfig, ServerConfig
from qmux.errors import CertificateError, ConfigError, StartError


def check(loaded: Loaded, name: str) -> None:
    """Raise ConfigError if the daemon could not start here: the engine is missing or does not take the
    key, or the user cannot run it.

    ``name``: the name of the configuration in messages. The user is checked only as root: only root can switch to it.
    """
    process = loaded.config.process
    problems = _told(lambda: _try_engine(loaded))
    if isinstance(loaded.config, ServerConfig):
        problems += _told(lambda: state_dir(loaded.config))
    if (process.user or process.group) and os.geteuid() == 0 and sys.platform.startswith("linux"):
        problems += _told(lambda: _try_user(loaded))
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems], name)


def _told(attempt: Callable[[], object]) -> list[str]:
    try:
        attempt()
    except (StartError, CertificateError) as error:
        return [str(error)]
    return []


def _try_engine(loaded: Loaded) -> None:
    from qmux.quic.choose import load_engine
    from qmux.quic.trial import try_material

    process = loaded.config.process
    try_material(load_engine(process.engine), loaded.material, process.tls)


def _try_user(loaded: Loaded) -> None:
    from supervisor.privileges import owner_of, try_interpreter

    table = "client" if isinstance(loaded.config, ClientConfig) else "server"
    try_interpreter(owner_of(loaded.config.process, table), table)
