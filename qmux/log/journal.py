"""systemd's journal: whether a descriptor leads there, and the priorities that it understands."""

from __future__ import annotations

import logging
import os

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""sd-daemon(3)"""


def leads_to_journal(fd: int) -> bool:
    """Whether ``fd`` is the stream that systemd connected to the journal: systemd.exec(5), JOURNAL_STREAM."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    if not stream:
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def prefix(level: int) -> str:
    """``<N>``: how a line of standard error tells the journal its priority (sd-daemon(3)).

    ``level`` is one of ``logging``; one between two of those counts as the lower.
    """
    return f"<{next((n for at, n in _PRIORITIES.items() if level >= at), 7)}>"
