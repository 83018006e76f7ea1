"""When an unanswered attempt is dead, and what may be retried. Pure rules; the caller has the clock and the PINGs.

A slow dial must not look dead, and a dead client must not look slow: while an attempt is unanswered the server PINGs
the connection every max(PTO, 200 ms); the attempt fails when nothing at all arrives for max(3 PTO, 500 ms) after one.
"""

from __future__ import annotations

MIN_PING_INTERVAL_S = 0.2
MIN_SILENCE_S = 0.5


class AttemptClock:
    """The clock of one attempt. All times are ``time.monotonic()``."""

    def __init__(self, now: float) -> None:
        self._last_ping_at = now
        self._unanswered_since: float | None = None

    def next_ping(self, pto_s: float) -> float:
        """When to PING again."""
        return self._last_ping_at + max(pto_s, MIN_PING_INTERVAL_S)

    def ping_sent(self, now: float) -> None:
        """A PING went out."""
        self._last_ping_at = now
        if self._unanswered_since is None:
            self._unanswered_since = now

    def heard(self, last_received_at: float) -> None:
        """When the newest packet of the connection came; called before ``is_dead``."""
        if self._unanswered_since is not None and last_received_at > self._unanswered_since:
            self._unanswered_since = None

    def is_dead(self, now: float, pto_s: float) -> bool:
        """Whether the connection has been silent for too long after a PING."""
        since = self._unanswered_since
        return since is not None and now - since > max(3 * pto_s, MIN_SILENCE_S)


def may_retry(*, answered: bool, early_data_sent: bool) -> bool:
    """Whether another client may be tried after a failed attempt.

    By default the user's bytes follow ConnReady, so every attempt that did not reach it can be retried. With early data
    only an explicit refusal (``answered``) proves that the service got nothing.
    """
    return answered or not early_data_sent
