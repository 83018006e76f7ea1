//! How much relays move at once: enough to be worth a system call while all of them move much, and less while others,
//! that move little, wait.

use std::time::{Duration, Instant};

/// What one relay may move in each direction, and all that move much may read together, before it is sent and the
/// others have their turn: every call on a TCP socket costs an acknowledgement and wakes a process, so it should be
/// worth it.
pub const SHARE_BYTES: usize = 256 << 10;

/// The same while there are relays that move little: theirs wait for it at both ends, there and back. Of 1.2 ms beside
/// a transfer over loopback it leaves 0.6; 64 KiB would leave 0.5, and cost that transfer a tenth of its speed.
const SHORT_SHARE_BYTES: usize = 96 << 10;

/// Shares are short for this long after a relay moved little.
const SHORT_FOR: Duration = Duration::from_millis(50);

/// A relay that moves this much within this time moves much.
const BULK_BYTES: usize = 64 << 10;
const WINDOW: Duration = Duration::from_millis(10);

/// What one relay moved lately, either way.
pub struct Pace {
    since: Instant,
    bytes: usize,
    /// In the window before this one.
    was_bulk: bool,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, was_bulk: false }
    }

    pub fn moved(&mut self, bytes: usize, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= WINDOW {
            self.was_bulk = age < 2 * WINDOW && self.bytes >= BULK_BYTES;
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// Whether it moves much.
    pub fn is_bulk(&self) -> bool {
        self.was_bulk || self.bytes >= BULK_BYTES
    }
}

/// How long the turns are now, and what was read since something was sent.
#[derive(Default)]
pub struct Share {
    small_at: Option<Instant>,
    unsent: usize,
}

impl Share {
    pub fn bytes(&self, now: Instant) -> usize {
        match self.small_at {
            Some(at) if now.saturating_duration_since(at) < SHORT_FOR => SHORT_SHARE_BYTES,
            _ => SHARE_BYTES,
        }
    }

    /// A relay moved something, and read so much of it from its socket.
    pub fn moved(&mut self, is_bulk: bool, read: usize, now: Instant) {
        self.unsent += read;
        if !is_bulk {
            self.small_at = Some(now);
        }
    }

    /// Whether enough was read to be sent before more is.
    pub fn is_full(&self, now: Instant) -> bool {
        self.unsent >= self.bytes(now)
    }

    /// What was read is on its way.
    pub fn sent(&mut self) {
        self.unsent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_relay_that_moves_much_stays_bulk_in_the_next_window() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.moved(BULK_BYTES - 1, start);
        assert!(!pace.is_bulk());
        pace.moved(1, start + 9 * MS);
        assert!(pace.is_bulk());
        pace.moved(1, start + 10 * MS);
        assert!(pace.is_bulk(), "it did just now");
        pace.moved(1, start + 20 * MS);
        assert!(!pace.is_bulk());
    }

    #[test]
    fn a_relay_that_was_idle_is_no_longer_bulk() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.moved(10 * BULK_BYTES, start);
        pace.moved(100, start + 20 * MS);
        assert!(!pace.is_bulk());
    }

    #[test]
    fn shares_are_short_while_a_relay_moves_little() {
        let start = Instant::now();
        let mut share = Share::default();
        share.moved(true, SHORT_SHARE_BYTES, start);
        assert_eq!((share.bytes(start), share.is_full(start)), (SHARE_BYTES, false));
        share.moved(false, 0, start);
        assert_eq!((share.bytes(start), share.is_full(start)), (SHORT_SHARE_BYTES, true));
        share.sent();
        assert!(!share.is_full(start));
        assert_eq!(share.bytes(start + 49 * MS), SHORT_SHARE_BYTES);
        assert_eq!(share.bytes(start + 50 * MS), SHARE_BYTES);
    }
}
