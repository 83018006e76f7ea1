"""The one place where an error becomes lines on stderr and an exit code.

Commands raise ``qmux.errors``; no mistake of a user ends in a traceback, also where a library found it, not we. A
traceback means a defect in QMux.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from qmux.cli import descriptors
from qmux.errors import ConfigError, QmuxError, UsageError
from qmux.paths import escaped

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

UNFORESEEN = (ValueError, OverflowError, RecursionError)
"""What libraries raise for a value that they do not take: never a traceback, since a user can have caused it."""

ESCAPE = "qmux-escape"
"""The error handler of our output streams (``codecs.register_error``)."""

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
    _escape_what_cannot_be_written()
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
    except UNFORESEEN as error:
        say(f"{name}: {unforeseen(error)}")
        return FAILED


def _interruptible() -> None:
    """From here on Ctrl-C is an exception again (``qmux.cli.entry``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def report(name: str, error: QmuxError, say: Callable[[str], None] = to_stderr) -> None:
    """Say an error after the program's name; the lines of a configuration's problems start with the file already."""
    say(str(error) if isinstance(error, ConfigError) else f"{name}: {error}")


def describe(error: OSError) -> str:
    """A failed system call, as a user reads it."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what


def unforeseen(error: Exception) -> str:
    """What a library said of a value that none of our checks refused before, and where: for the user and for us."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "qmux" in Path(frame.filename).parts] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return (
        f"{escaped(str(error))} ({type(error).__name__} at {place}): QMux did not foresee this input; "
        "please look for an odd value in it, and report this line"
    )


def _escape_what_cannot_be_written() -> None:
    """A path need be no UTF-8, and a terminal no Unicode: that must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What this stream cannot encode, as ``paths.text_of`` writes it, or as Python would."""
    assert isinstance(error, UnicodeEncodeError), "only for writing"
    signs = error.object[error.start : error.end]
    ascii_signs = (escaped(sign).encode("ascii", "backslashreplace").decode() for sign in signs)
    return "".join(ascii_signs), error.end


codecs.register_error(ESCAPE, _escape)


def _discard_output() -> None:
    """The reader of stdout has gone: keep Python's flush at exit from failing a second time."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
