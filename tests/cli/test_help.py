"""Every command explains itself with an example, at once, and in the words of docs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from qmux import __version__
from qmux.cli.main import COMMANDS
from qmux.cli.main import command as qmux
from qmux.cli.qmuxc import command as qmuxc
from qmux.cli.qmuxd import command as qmuxd
from tests.cli.programs import run

HEAVY = ("aioquic", "aiohttp", "supervisor", "uvloop", "zmq", "asyncio", "cryptography")


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


ALL = [*commands(qmux, ("qmux",)), (("qmuxd",), qmuxd), (("qmuxc",), qmuxc)]


@pytest.mark.parametrize("command", [command for _, command in ALL], ids=[" ".join(path) for path, _ in ALL])
def test_every_command_has_help_with_an_example(command: click.Command) -> None:
    context = click.Context(command, info_name="x")
    text = command.get_help(context)
    assert "Example:" in text
    assert command.help


def test_every_option_is_explained() -> None:
    silent = [
        (path, parameter.name)
        for path, command in ALL
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


def test_the_commands_of_this_version_are_there() -> None:
    assert list(COMMANDS) == ["demo", "init", "check", "status", "reload", "pki", "completion"]


@pytest.mark.parametrize("program", ["qmux", "qmuxd", "qmuxc"])
def test_the_version_is_the_packages(program: str) -> None:
    assert run(program, "--version").stdout == f"{program} {__version__}\n"


@pytest.mark.parametrize("program", ["qmux", "qmuxd", "qmuxc"])
def test_help_imports_nothing_heavy(program: str) -> None:
    module = {"qmux": "qmux.cli.main"}.get(program, f"qmux.cli.{program}")
    code = (
        f"import sys; sys.argv = ['{program}', '--help']\n"
        f"from {module} import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() == "[]"


def test_python_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "qmux", "--version"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, f"qmux {__version__}\n")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("sttaus", 'no such command "sttaus"; did you mean qmux status?'),
        ("pki isue", 'no such command "isue"; did you mean qmux pki issue?'),
        ("pki issue srever x", "did you mean qmux pki issue server?"),
        ("init cleint", "did you mean qmux init client?"),
        ("zzz", "there are demo, init, check, status, reload, pki, completion"),
    ],
)
def test_a_mistyped_command_gets_the_nearest_name(words: str, advice: str) -> None:
    done = run("qmux", *words.split())
    assert done.returncode == 2
    assert advice in done.stderr


def test_a_command_of_a_later_version_is_told() -> None:
    done = run("qmux", "doctor")
    assert done.returncode == 2
    assert "doctor: not available in this version" in done.stderr
