"""``qmux init``: what it writes is a configuration that checks, whatever words went into it."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from qmux.config.load import load
from qmux.config.schema import ClientConfig, ServerConfig
from qmux.pki import authority
from tests.cli.programs import arguments, ok, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority.init(tmp_path)
    (tmp_path / "odd \"name'").mkdir()
    (authority.issue_server(tmp_path, ["server"])).rename(tmp_path / "odd \"name'" / "sërver.pem")
    authority.issue_server(tmp_path, ["server"])
    authority.issue_client(tmp_path, "client", ["*"])
    return tmp_path


def test_without_options_it_has_a_whole_example(folder: Path) -> None:
    for kind in ("server", "client"):
        done = run("qmux", "init", kind, *(["--server", "localhost"] if kind == "client" else []), cwd=folder)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [
            f"{kind}.toml: written",
            f"next: qmux check {kind}.toml && qmux{kind[0] if kind == 'client' else 'd'} -c {kind}.toml",
        ]
    done = run("qmux", "check", "server.toml", "client.toml", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "server.toml: ok\nclient.toml: ok\n")


def test_a_server_is_never_made_up(tmp_path: Path) -> None:
    done = run("qmux", "init", "client", "--service", "web=127.0.0.1:3000", cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "which server? --server HOST[:PORT] names it" in done.stderr


def test_the_facts_go_into_the_file(folder: Path) -> None:
    odd = "odd \"name'/sërver.pem"
    options = ["--service", "a=:80", "--service", "b.c=[::1]:443", "--quic-bind", "127.0.0.1:9", "--bundle", odd]
    ok("init", "server", "-o", folder / "s.toml", *options)
    server = load(folder / "s.toml", "server").config
    assert isinstance(server, ServerConfig)
    assert {name: str(service.bind[0]) for name, service in server.services.items()} == {"a": ":80", "b.c": "[::1]:443"}
    assert [str(bind) for bind in server.quic_binds()] == ["127.0.0.1:9"]
    options = [
        "--service",
        "a=127.0.0.1:1",
        "--service",
        "b=unix:/run/x y.sock",
        "--server",
        "x",
        "--server",
        "[::1]:9",
    ]
    ok("init", "client", "-o", folder / "c.toml", *options)
    client = load(folder / "c.toml", "client").config
    assert isinstance(client, ClientConfig)
    assert [str(server) for server in client.servers] == ["x:8443", "[::1]:9"]
    assert str(client.services["b"].target) == "unix:/run/x y.sock"


def test_it_says_how_to_get_the_certificate_that_is_missing(tmp_path: Path) -> None:
    assert "next: qmux pki init, then qmux pki issue server NAME" in ok("init", "server", "-o", tmp_path / "s.toml")
    text = ok("init", "client", "-o", tmp_path / "c.toml", "--server", "x", "--service", "a=x:1", "--service", "b=x:2")
    assert "next: qmux pki issue client NAME --service a --service b" in text


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("mine")
    (tmp_path / "client.toml").symlink_to("nowhere")
    for kind in ("server", "client"):
        done = run("qmux", "init", kind, cwd=tmp_path)
        assert done.returncode == 2
        assert f"{kind}.toml: exists already and was left alone" in done.stderr
    assert (tmp_path / "server.toml").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["server", "--service", "web"], '"web" is not NAME=BIND'),
        (["server", "--service", "web=80"], 'did you mean ":80"?'),
        (["server", "--service", "we b=:80"], "is not NAME=BIND"),
        (["server", "--service", "a=:80", "--service", "a=:81"], "named twice"),
        (["server", "--quic-bind", "localhost:1"], "a bind takes an IP address"),
        (["client", "--server", "x", "--service", "web=3000"], 'did you mean "127.0.0.1:3000"?'),
        (["client", "--server", "::1"], "stands in brackets"),
    ],
)
def test_a_word_that_no_configuration_takes_is_refused_and_nothing_written(
    tmp_path: Path, words: list[str], line: str
) -> None:
    done = run("qmux", "init", *words, cwd=tmp_path)
    assert (done.returncode, line in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        arguments("qmux", "init", "client", "--bundle", "x.pem"),
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, b"api=127.0.0.1:9\n\nlocalhost\n")
    assert process.wait(30) == 0
    os.close(ours)
    text = (tmp_path / "client.toml").read_text()
    assert '[services.api]\ntarget = "127.0.0.1:9"' in text
    assert 'servers = ["localhost:8443"]' in text
