"""Where the three programs begin: Ctrl-C just ends them while their modules are still being imported."""

from __future__ import annotations

import importlib
import signal


def qmux() -> None:
    """Entry point of ``qmux``."""
    _run("qmux.cli.main")


def qmuxd() -> None:
    """Entry point of ``qmuxd``."""
    _run("qmux.cli.qmuxd")


def qmuxc() -> None:
    """Entry point of ``qmuxc``."""
    _run("qmux.cli.qmuxc")


def _run(module: str) -> None:
    # An import that is interrupted by an exception ends in a traceback. Who ignores the signal goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module(module).main()
