"""Keeps what a run found, by the time of its end, in ``loadtest/out``."""

from __future__ import annotations

import time
from pathlib import Path

OUT = Path(__file__).parent / "out"


def keep(prefix: str, table: str, samples: str) -> Path:
    """Write the table as .md and the samples as .json, and return their common path without the ending."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}"
    path.with_suffix(".md").write_text(table + "\n")
    path.with_suffix(".json").write_text(samples + "\n")
    return path
