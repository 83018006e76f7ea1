"""``python -m qmux``: the same as ``qmux``."""

from __future__ import annotations

from qmux.cli.entry import qmux

if __name__ == "__main__":
    qmux()
