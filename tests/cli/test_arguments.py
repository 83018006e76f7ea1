"""Any words after any command: refused with an exit code and words, never with what a library raised.

The commands run without the boundary that turns a library's exception into words: none may get that far.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qmux.cli import qmuxc, qmuxd
from qmux.cli.main import command as qmux
from qmux.errors import QmuxError
from qmux.pki import authority

CONFIG = '[server]\nbundle = "localhost.pem"\n[services.web]\nbind = ":80"\n'
CLIENT = '[client]\nbundle = "pod-1.pem"\nservers = "localhost"\n[services.web]\ntarget = "127.0.0.1:1"\n'
NEVER = {"--watch", "--once"}
"""Options that make a command stay."""


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below ``command``, by its whole name."""
    if isinstance(command, click.Group):
        for word in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), word)
            assert inner is not None
            yield from commands(inner, f"{name} {word}")
    else:
        yield name, command


COMMANDS = dict([*commands(qmux, "qmux"), ("qmuxd", qmuxd.command), ("qmuxc", qmuxc.command)])
del COMMANDS["qmux demo"]  # it runs daemons

PLAUSIBLE = [
    "", "-", "--", "ca.pem", "ca.key", "localhost.pem", "pod-1.pem", "server.toml", "client.toml", "broken.toml", "sub",
    "localhost", "pod-1", "web", "*", "web=127.0.0.1:1", "web=:80", "web=unix:x", "=", "a=b=c", "fe80::1%lo", "x" * 300,
    "x" * 65, ".".join(["x" * 60] * 4), "b\u00fccher.example", "::ffff:1.2.3.4", "1" * 5000, "0", "-1", "bash",
]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(PLAUSIBLE),
    st.text(max_size=20),
    # What the system passes on: any bytes but NUL (execve(2)), here without ways out of the directory.
    st.binary(max_size=20).map(os.fsdecode),
).filter(lambda word: "\0" not in word and "/" not in word and ".." not in word)


@st.composite
def lines(draw: st.DrawFn, command: click.Command) -> list[str]:
    """A command line: options that it has with values, and words."""
    words = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or not draw(st.booleans()) or set(parameter.opts) & NEVER:
            continue
        words.append(parameter.opts[-1])
        if not parameter.is_flag:
            words.append(draw(WORDS))
    return [*words, *draw(st.lists(WORDS, max_size=3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arguments")
    authority.init(path)
    authority.issue_server(path, ["localhost"])
    authority.issue_client(path, "pod-1", ["web"])
    (path / "server.toml").write_text(CONFIG)
    (path / "client.toml").write_text(CLIENT)
    (path / "broken.toml").write_bytes(b"\xff[\n")
    (path / "sub").mkdir()
    return path


@pytest.mark.parametrize("name", COMMANDS)
@given(data=st.data())
@example(data=None)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_words_raise_what_only_a_defect_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: st.DataObject | None
) -> None:
    command = COMMANDS[name]
    words = [] if data is None else data.draw(lines(command))
    if command in (qmuxd.command, qmuxc.command):
        words = ["--check", *words]
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")  # as the boundary sets it
    with tempfile.TemporaryDirectory() as place, monkeypatch.context() as patched:
        shutil.copytree(folder, place, dirs_exist_ok=True)
        patched.chdir(place)
        patched.setattr(sys, "stdout", output)
        patched.setattr(sys, "stderr", output)
        patched.setattr(sys, "stdin", io.StringIO())
        try:
            command.main(args=words, prog_name=name, standalone_mode=False)
        except (QmuxError, click.ClickException, click.exceptions.Exit, click.Abort, OSError):
            pass
