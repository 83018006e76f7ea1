"""Completion: the scripts are valid, and they ask the programs for words."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.cli.programs import arguments, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_program(shell: str) -> None:
    done = run("qmux", "completion", shell)
    assert done.returncode == 0
    for program in ("qmux", "qmuxd", "qmuxc"):
        assert f"_{program.upper()}_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True, timeout=10)


def test_another_shell_is_refused() -> None:
    assert run("qmux", "completion", "csh").returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [("qmux ", {"pki", "status"}), ("qmux pki i", {"init", "issue"}), ("qmux pki issue ", {"server", "client"})],
)
def test_words_are_completed(words: str, expected: set[str]) -> None:
    env = {
        "_QMUX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        arguments("qmux"), env=os.environ | env, capture_output=True, text=True, timeout=30, check=False
    )
    assert expected <= {line.split(",")[1] for line in done.stdout.splitlines()}
