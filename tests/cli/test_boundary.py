"""Errors become lines and exit codes; only a defect shows a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from qmux import errors, paths
from qmux.cli import boundary
from tests.cli.programs import arguments, run


def failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.QmuxError("it broke"), 1, "prog: it broke"),
        (errors.UsageError("which one?"), 2, "prog: which one?"),
        (errors.ConfigError(["x.toml:1: a.b: wrong"], "x.toml"), 3, "x.toml:1: a.b: wrong\n1 error in x.toml"),
        (errors.CertificateError("x.pem: expired"), 3, "prog: x.pem: expired"),
        (errors.StartError("port in use"), 4, "prog: port in use"),
        (errors.UnreachableError("nobody"), 5, "prog: nobody"),
        (errors.ConditionError("no"), 6, "prog: no"),
        (errors.PeerError("a rule"), 1, "prog: a rule"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "prog: /x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "prog: No space left on device"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (click.exceptions.Exit(6), 6, ""),
    ],
)
def test_each_error_has_its_code_and_its_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(failing(error), "prog", []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == line


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_that_is_started_without_descriptors(closed: str, tmp_path: Path) -> None:
    """Its own files do not take their numbers, and the exit code is the same."""
    for words, code in ((("--version",), 0), (("check", tmp_path / "none.toml"), 3)):
        command = shlex.join(arguments("qmux", *words))
        done = subprocess.run(["sh", "-c", f"exec {command} {closed}"], capture_output=True, text=True, timeout=30)
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_a_full_disk_under_stderr_changes_no_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(arguments("qmuxd", "-c", "none.toml"), stderr=full, timeout=30)
        assert done.returncode == 3
        done = subprocess.run(arguments("qmux", "status", "--socket", "none.sock"), stderr=full, timeout=30)
        assert done.returncode == 5


def test_a_wrong_option_is_wrong_usage_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.run(failing(ValueError()), "prog", ["--frobnicate"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_a_commands_own_code_is_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> int:
        click.echo("done")
        return 6

    assert boundary.run(command, "prog", []) == 6
    assert capsys.readouterr().out == "done\n"


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        boundary.run(failing(ZeroDivisionError()), "prog", [])


def test_a_reader_that_is_gone_ends_the_program_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(
            arguments("qmux", "completion", "zsh"),
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("embedded null byte"), UnicodeError("a\udcff"), OverflowError("too large"), RecursionError("deep")],
)
def test_what_a_library_did_not_take_is_told_in_words(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.run(failing(error), "prog", []) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"prog: {paths.escaped(str(error))} ({type(error).__name__} at ")
    assert "QMux did not foresee this input" in said


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9-\xc3\xbc")
    done = run("qmux", "pki", "init", "--dir", place, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/caf\\xe9-\u00fc/ca.pem: ")
