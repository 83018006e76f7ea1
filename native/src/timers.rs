//! Deadlines, behind one timerfd.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::arena::Id;

/// What a deadline is for. The same value is set at most once at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    Quic(Id),
    Handshake(Id),
    Ping(Id),
    Relay(Id),
    Request(Id),
    Listener(Id),
    Attempts,
}

/// Ordered deadlines. The owner of one keeps its time, to change it.
pub struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
    fd: OwnedFd,
    armed: Option<Instant>,
}

impl Timers {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Self { queue: BTreeSet::new(), fd: unsafe { OwnedFd::from_raw_fd(fd) }, armed: None })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Move `timer` from `*at` to `new`.
    pub fn set(&mut self, timer: Timer, at: &mut Option<Instant>, new: Option<Instant>) {
        if *at == new {
            return;
        }
        if let Some(old) = at.take() {
            self.queue.remove(&(old, timer));
        }
        if let Some(new) = new {
            self.queue.insert((new, timer));
        }
        *at = new;
    }

    /// The next one that is due; its owner must forget its time.
    pub fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        Some(timer)
    }

    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }

    /// The timerfd fired: it is armed no more.
    pub fn fired(&mut self) {
        self.armed = None;
    }

    /// Wake the event loop at the first deadline.
    pub fn arm(&mut self) {
        let Some(at) = self.next() else { return };
        if self.armed.is_some_and(|armed| armed <= at) {
            return; // fires earlier, and is armed again then
        }
        // 0 would disarm it.
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos() as _ },
        };
        // SAFETY: `spec` lives through the call; no old value is requested.
        let result = unsafe { libc::timerfd_settime(self.fd(), 0, &spec, std::ptr::null_mut()) };
        debug_assert_eq!(result, 0, "the descriptor and the value are valid");
        self.armed = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_can_be_moved() {
        let mut timers = Timers::new().expect("a timerfd");
        let now = Instant::now();
        let at = |ms| Some(now + Duration::from_millis(ms));
        let (mut first, mut second) = (None, None);
        timers.set(Timer::Quic(1), &mut first, at(10));
        timers.set(Timer::Relay(1), &mut second, at(5));
        timers.set(Timer::Quic(1), &mut first, at(1));
        assert_eq!(timers.pop_due(now), None);
        assert_eq!(timers.pop_due(now + Duration::from_millis(20)), Some(Timer::Quic(1)));
        timers.set(Timer::Relay(1), &mut second, None);
        assert_eq!(timers.pop_due(now + Duration::from_millis(20)), None);
    }
}
