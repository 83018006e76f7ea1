"""A directory whose name is no UTF-8 is a directory like any other, at both ends and for every command."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cli.programs import run
from tests.daemons import Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import says

STRICT = {"PYTHONIOENCODING": "utf-8:strict"}
"""As in a locale other than C: what cannot be encoded is an error there."""


def test_everything_below_such_a_directory(tmp_path: Path, engine: str) -> None:
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    shown = f"{tmp_path}/caf\\xe9"
    deployment = Deployment(directory, engine)
    deployment.extra_environment = STRICT
    port = free_port()
    try:
        with Service(named("there"), path=str(directory / "web.sock")):
            server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
            client = deployment.client("pod-1", {"web": "unix:web.sock"}).until_ready()
            server.until_clients(1)
            assert says(port) == "there"
        assert server.status()["server"]["source"] == f"{shown}/server.toml"
        assert client.reload()["ok"]
        for words in (("status", "-c", server.config), ("reload", "-c", server.config)):
            done = run("qmux", *words, env=STRICT)
            assert done.returncode == 0, done.stderr
        (directory / "localhost.pem").unlink()
        refused = server.reload()
        assert not refused["ok"]
        assert f'{shown}/server.toml:2: server.bundle = "localhost.pem": no such file ({shown}/' in refused["lines"][0]
        done = run("qmux", "check", server.config, env=STRICT)
        assert (done.returncode, shown in done.stderr) == (3, True), done.stderr
        done = run("qmux", "pki", "renew", "pod-1", "--dir", directory, env=STRICT)
        assert (done.returncode, shown in done.stdout) == (0, True), done.stdout
    finally:
        deployment.close()
