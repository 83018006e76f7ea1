"""``python -m qmux``: the same as ``qmux``."""

from __future__ import annotations

from qmux.cli.main import main

if __name__ == "__main__":
    main()
