"""``qmux completion``: print the completion script for a shell (click generates it)."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

EXAMPLE = """\b
Example:
  qmux completion bash > ~/.local/share/bash-completion/completions/qmux
  eval "$(qmux completion zsh)"
  qmux completion fish > ~/.config/fish/completions/qmux.fish
"""


@click.command(epilog=EXAMPLE)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of qmux, qmuxd and qmuxc for a shell."""
    from qmux.cli import main, qmuxc, qmuxd

    programs = {"qmux": main.command, "qmuxd": qmuxd.command, "qmuxc": qmuxc.command}
    source_class = get_completion_class(shell)
    assert source_class is not None
    for name, program in programs.items():
        click.echo(source_class(program, {}, name, f"_{name.upper()}_COMPLETE").source())
