"""Runs the real supervisor with ``fake_child``. Argument: a directory with ``config.json`` and ``settings.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from qmux.config.loaded import Loaded
from qmux.config.schema import ClientConfig, ServerConfig
from qmux.errors import ConfigError, QmuxError
from qmux.pki.material import Material
from supervisor.run import run
from supervisor.settings import Settings


def main() -> int:
    directory = Path(sys.argv[1])

    def load() -> Loaded:
        text = (directory / "config.json").read_text()
        kind = ClientConfig if '"servers"' in text else ServerConfig
        try:
            config = msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise ConfigError([f"server.toml:3: services.web.bind: {error}"], "server.toml") from None
        material = (directory / "material").read_bytes()
        return Loaded(config, Material(b"chain", material, b"ca"))

    def command(kind: str, fd: int, name: str) -> list[str]:
        child = Path(__file__).with_name("fake_child.py")
        return [sys.executable, "-P", str(child), str(fd), name, str(directory)]

    settings = Settings(command=command, **json.loads((directory / "settings.json").read_text()))
    try:
        return run(load, settings)
    except QmuxError as error:
        print(f"fake_daemon: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
