"""The one place where an error becomes lines on stderr and an exit code.

Commands raise ``qmux.errors``; no mistake of a user ends in a traceback. A traceback means a defect in QMux.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import click

from qmux.errors import ConfigError, QmuxError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

FAILED = 1
"""A failure of the system (a full disk, a missing permission) that no QmuxError describes better."""


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run ``command`` as the program ``name`` and return the exit code."""
    try:
        _interruptible()
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code if isinstance(error, click.UsageError) else UsageError.exit_code
    except QmuxError as error:
        report(name, error)
        return error.exit_code
    except BrokenPipeError:
        _discard_output()
        return FAILED
    except OSError as error:
        click.echo(f"{name}: {describe(error)}", err=True)
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _interruptible() -> None:
    """From here on Ctrl-C is an exception again (``qmux.cli.entry``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def report(name: str, error: QmuxError) -> None:
    """Print an error after the program's name; the lines of a configuration's problems start with the file already."""
    click.echo(str(error) if isinstance(error, ConfigError) else f"{name}: {error}", err=True)


def describe(error: OSError) -> str:
    """A failed system call, as a user reads it."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what


def _discard_output() -> None:
    """The reader of stdout has gone: keep Python's flush at exit from failing a second time."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
