"""Which engine runs: ``engine = "auto" | "aioquic" | "native"``."""

from __future__ import annotations

import importlib
import importlib.util

from qmux.config.schema import EngineName
from qmux.errors import StartError
from qmux.quic.engine import Engine


def load_engine(name: EngineName) -> Engine:
    """The engine by this name; "auto" takes native where it is installed. Raises StartError."""
    # The adapter comes with the native engine; a release without it must not stumble over an installed qmux_native.
    has_native = all(importlib.util.find_spec(module) for module in ("qmux_native", "qmux.quic.native_engine"))
    if name == "native" or (name == "auto" and has_native):
        if not has_native:
            raise StartError('engine = "native": qmux_native is not installed; install it, or use engine = "auto"')
        engine: Engine = importlib.import_module("qmux.quic.native_engine").NativeEngine()
        return engine
    from qmux.quic.aioquic_engine import AioquicEngine

    return AioquicEngine()
