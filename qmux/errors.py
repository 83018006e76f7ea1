"""Every error that a user or a peer can cause, and the exit code that it becomes.

::

    QmuxError                    1  failed while running
     ├─ UsageError               2  wrong usage
     ├─ ConfigError              3  a config file is invalid (carries every problem found)
     ├─ CertificateError         3  a certificate, key or CA is invalid
     ├─ StartError               4  cannot start: port in use, permission, no engine
     ├─ UnreachableError         5  the daemon does not answer
     ├─ ConditionError           6  the condition that was asked for does not hold
     └─ PeerError                1  the other end broke a rule; only its connection closes

Code raises the most specific one; the command line (``qmux.cli``) turns it into one line on stderr and the exit code.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmux.paths import escaped


class QmuxError(Exception):
    """Base of everything that is reported to a user without a traceback. What cannot be printed in its text is escaped:
    a path need be no UTF-8, and what a peer wrote may not steer a terminal.
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(escaped(text))


class UsageError(QmuxError):
    """The command line cannot be carried out as written."""

    exit_code = 2


class ConfigError(QmuxError):
    """One or more problems in a configuration; ``problems`` has a line for each, already located."""

    exit_code = 3

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        self.problems = tuple(escaped(problem) for problem in problems)
        self.source = source
        count = f"{len(self.problems)} error{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([*self.problems, f"{count} in {source}" if source else count]))


class CertificateError(QmuxError):
    """A certificate, key or CA that cannot be used, and why."""

    exit_code = 3


class StartError(QmuxError):
    """Something that the daemon needs before it can serve is not to be had."""

    exit_code = 4


class UnreachableError(QmuxError):
    """No daemon answers at the place where one was expected."""

    exit_code = 5


class ConditionError(QmuxError):
    """The question was answered, and the answer is no."""

    exit_code = 6


class PeerError(QmuxError):
    """The other end of a connection broke the protocol."""
