"""Which engine runs: ``engine = "auto" | "aioquic" | "native"``."""

from __future__ import annotations

import importlib
import importlib.util
import logging

from qmux import __version__
from qmux.config.schema import EngineName
from qmux.errors import StartError
from qmux.quic.engine import Engine

log = logging.getLogger(__name__)


def load_engine(name: EngineName) -> Engine:
    """The engine by this name; "auto" takes native where it is installed and usable. Raises StartError."""
    problem = "" if name == "aioquic" else _native_problem()
    if name == "native" and problem:
        raise StartError(f'engine = "native": {problem}, or use engine = "auto"')
    if name == "native" or (name == "auto" and not problem):
        engine: Engine = importlib.import_module("qmux.quic.native_engine").NativeEngine()
        return engine
    if name == "auto" and importlib.util.find_spec("qmux_native") is not None:
        log.warning("native engine is installed but cannot be used; using aioquic", extra={"reason": problem})
    from qmux.quic.aioquic_engine import AioquicEngine

    return AioquicEngine()


def _native_problem() -> str:
    """Why the native engine cannot be used, and what to do; empty where it can."""
    if importlib.util.find_spec("qmux_native") is None:
        return "qmux_native is not installed; install it"
    try:
        found = str(importlib.import_module("qmux_native").__version__)
    except ImportError as error:  # of another platform, or of an older C library than it was built for
        return f"qmux_native cannot be loaded ({error}); install one for this machine"
    # The two speak to each other in a way that changes with each release.
    return (
        ""
        if found == __version__
        else f"qmux_native {found} is installed, this is QMux {__version__}; install both alike"
    )
