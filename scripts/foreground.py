"""Run a command as the terminal's foreground job, so that Ctrl-C reaches it and not the ``make`` that started it.

``make`` ends with an error of its own on SIGINT, whatever its recipe makes of it. The command gets a process group of
its own; a signal that is sent to this process, as ``timeout`` or a service manager does, is passed on once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(command: list[str]) -> int:
    """Run ``command`` to its end; its exit code, or 128 + the signal that ended it, as a shell has it."""
    terminal = _foreground_terminal()
    for stop in (signal.SIGTTOU, signal.SIGTSTP):  # we hand the terminal back from the background; Ctrl-Z stops nothing
        signal.signal(stop, signal.SIG_IGN)
    child = subprocess.Popen(command, process_group=0)
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: child.send_signal(received))
    if terminal is not None:
        os.tcsetpgrp(terminal, child.pid)
    try:
        code = child.wait()
    finally:
        if terminal is not None:
            os.tcsetpgrp(terminal, os.getpgrp())
    return code if code >= 0 else 128 - code


def _foreground_terminal() -> int | None:
    """The controlling terminal, where this process is in its foreground."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        return terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
