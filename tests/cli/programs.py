"""Running the commands: in this process for what is pure, as real programs where the process itself is in question."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from qmux.cli.main import command as qmux

MODULES = {"qmux": "qmux.cli.main", "qmuxd": "qmux.cli.qmuxd", "qmuxc": "qmux.cli.qmuxc"}


def arguments(program: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", MODULES[program], *map(str, words)]


def run(
    program: str,
    *words: str | Path,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout_s: float = 30.0,
) -> subprocess.CompletedProcess[str]:
    """A whole run of a program, with its exit code and what it wrote."""
    done = subprocess.run(
        arguments(program, *words),
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ok(*words: str | Path) -> str:
    """What ``qmux WORDS`` prints when it works."""
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def invoke(*words: str | Path) -> Result:
    """``qmux WORDS`` in this process, without the error boundary: errors are in ``result.exception``."""
    return CliRunner().invoke(qmux, [str(word) for word in words])
