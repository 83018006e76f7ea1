"""The one place where an error becomes lines on stderr and an exit code.

Commands raise ``qmux.errors``; no mistake of a user ends in a traceback. A traceback means a defect in QMux.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence

import click

from qmux.cli import descriptors
from qmux.errors import ConfigError, QmuxError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

FAILED = 1
"""A failure of the system (a full disk, a missing permission) that no QmuxError describes better."""


def to_stderr(text: str) -> None:
    """How a command that its user waits for reports an error."""
    with contextlib.suppress(OSError):  # a full disk, a closed pipe: the exit code still tells
        click.echo(text, err=True)


def run(
    command: click.Command,
    name: str,
    arguments: Sequence[str] | None = None,
    say: Callable[[str], None] = to_stderr,
) -> int:
    """Run ``command`` as the program ``name`` and return the exit code. ``say`` writes what ended it."""
    descriptors.open_standard()
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code if isinstance(error, click.UsageError) else UsageError.exit_code
    except QmuxError as error:
        report(name, error, say)
        return error.exit_code
    except BrokenPipeError:
        _discard_output()
        return FAILED
    except OSError as error:
        say(f"{name}: {describe(error)}")
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def report(name: str, error: QmuxError, say: Callable[[str], None] = to_stderr) -> None:
    """Say an error after the program's name; the lines of a configuration's problems start with the file already."""
    say(str(error) if isinstance(error, ConfigError) else f"{name}: {error}")


def describe(error: OSError) -> str:
    """A failed system call, as a user reads it."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what


def _discard_output() -> None:
    """The reader of stdout has gone: keep Python's flush at exit from failing a second time."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
