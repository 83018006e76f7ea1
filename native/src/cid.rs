//! Connection IDs as `qmux.steering` lays them out: 12 bytes, of which the first two name a worker's slot.
//!
//! High bit 0: issued by the slot in the other 15 bits. High bit 1: Initial form, chosen by a client as its first
//! destination ID, and by us for a Retry, because any worker may receive its answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::RngCore;

pub const BYTES: usize = 12;
const INITIAL_FORM: u16 = 0x8000;
pub const MAX_SLOT: u16 = 0x7fff;

/// Stateless resets are for the clients of a dead worker; a flood of garbage is not answered.
const RESETS_PER_S: f64 = 200.0;

fn with_prefix(prefix: u16) -> ConnectionId {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes[..2].copy_from_slice(&prefix.to_be_bytes());
    ConnectionId::new(&bytes)
}

/// A new ID that steers to `slot`.
pub fn issued(slot: u16) -> ConnectionId {
    with_prefix(slot & MAX_SLOT)
}

/// A client's first destination ID: for `lane`, or for one drawn at random.
pub fn initial(lane: Option<u16>) -> ConnectionId {
    let lane = lane.unwrap_or_else(|| rand::rng().next_u32() as u16);
    with_prefix(INITIAL_FORM | lane)
}

/// The slot that issued this ID; None where it has Initial form or is too short.
pub fn issued_slot(id: &[u8]) -> Option<u16> {
    let prefix = u16::from_be_bytes([*id.first()?, *id.get(1)?]);
    (prefix & INITIAL_FORM == 0).then_some(prefix)
}

/// Whether an Initial with this destination may open a connection.
pub fn has_initial_form(id: &[u8]) -> bool {
    id.len() >= 2 && id[0] & 0x80 != 0
}

/// The destination ID of a datagram (RFC 8999 §5): one of our length where the header is short.
pub fn destination(datagram: &[u8]) -> Option<&[u8]> {
    if datagram.first()? & 0x80 == 0 {
        return datagram.get(1..1 + BYTES);
    }
    let length = usize::from(*datagram.get(5)?);
    datagram.get(6..6 + length)
}

/// An endpoint's rules for IDs of no connection; shared with quinn's generator.
pub struct Ids {
    slot: u16,
    answers: bool,
    live: Mutex<Vec<u16>>,
    resets: Mutex<Bucket>,
    initial_form: AtomicBool,
    pub unknown: AtomicU64,
    pub foreign: AtomicU64,
}

impl Ids {
    /// `answers`: whether unknown connections get a stateless reset (servers only).
    pub fn new(slot: u16, answers: bool) -> Arc<Self> {
        Arc::new(Self {
            slot,
            answers,
            live: Mutex::new(Vec::new()),
            resets: Mutex::new(Bucket::new(RESETS_PER_S, Instant::now())),
            initial_form: AtomicBool::new(false),
            unknown: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
        })
    }

    pub fn set_live(&self, slots: Vec<u16>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// The next ID generated is that of a Retry.
    pub fn for_retry(&self, wanted: bool) {
        self.initial_form.store(wanted, Relaxed);
    }

    pub fn is_foreign(&self, id: &[u8]) -> bool {
        let Some(slot) = issued_slot(id) else { return false };
        slot != self.slot && self.live.lock().unwrap_or_else(PoisonError::into_inner).contains(&slot)
    }

    fn may_reset(&self) -> bool {
        self.answers && self.resets.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }
}

/// quinn's side of `Ids`.
pub struct Generator(pub Arc<Ids>);

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        match self.0.initial_form.load(Relaxed) {
            true => initial(Some(self.0.slot)),
            false => issued(self.0.slot),
        }
    }

    /// Called for short headers that belong to no connection; Ok leads to a stateless reset. The ID of another live
    /// worker must not: the reset would close a healthy connection.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.0.is_foreign(id) {
            self.0.foreign.fetch_add(1, Relaxed);
            return Err(InvalidCid);
        }
        self.0.unknown.fetch_add(1, Relaxed);
        self.0.may_reset().then_some(()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A token bucket of one second's worth.
struct Bucket {
    per_s: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_s: f64, now: Instant) -> Self {
        Self { per_s, left: per_s, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_s;
        self.left = self.per_s.min(self.left + gained);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_steer() {
        for slot in [0, 1, 258, MAX_SLOT] {
            assert_eq!(issued_slot(&issued(slot)), Some(slot));
            assert!(!has_initial_form(&issued(slot)));
            let first = initial(Some(slot));
            assert_eq!((first.len(), issued_slot(&first)), (BYTES, None));
            assert!(has_initial_form(&first));
            assert_eq!(u16::from_be_bytes([first[0], first[1]]), INITIAL_FORM | slot);
        }
        assert_ne!(issued(1)[2..], issued(1)[2..]);
        assert!(has_initial_form(&initial(None)));
    }

    #[test]
    fn too_short_ids_have_no_slot() {
        for id in [&[][..], &[1], &[0x80]] {
            assert_eq!((issued_slot(id), has_initial_form(id)), (None, false));
        }
        for datagram in [&[][..], &[0x40], &[0x40; 12], &[0xc0; 5], &[0xc0, 0, 0, 0, 1, 20, 1]] {
            assert_eq!(destination(datagram), None);
        }
        assert_eq!(destination(&[0x40; 13]), Some(&[0x40; 12][..]));
        assert_eq!(destination(&[0xc0, 0, 0, 0, 1, 2, 7, 8]), Some(&[7, 8][..]));
    }

    #[test]
    fn another_live_slot_is_never_reset() {
        let ids = Ids::new(3, true);
        ids.set_live(vec![3, 4]);
        let generator = Generator(ids.clone());
        assert!(generator.validate(&issued(3)).is_ok());
        assert!(generator.validate(&issued(4)).is_err());
        assert!(generator.validate(&issued(5)).is_ok());
        assert_eq!((ids.unknown.load(Relaxed), ids.foreign.load(Relaxed)), (2, 1));
        assert!(Generator(Ids::new(3, false)).validate(&issued(3)).is_err());
    }

    #[test]
    fn a_retry_has_initial_form() {
        let ids = Ids::new(7, true);
        let mut generator = Generator(ids.clone());
        ids.for_retry(true);
        assert!(has_initial_form(&generator.generate_cid()));
        ids.for_retry(false);
        assert_eq!(issued_slot(&generator.generate_cid()), Some(7));
    }

    #[test]
    fn the_bucket_empties_and_fills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, start);
        assert_eq!((0..20).filter(|_| bucket.take(start)).count(), 10);
        assert_eq!((0..20).filter(|_| bucket.take(start + Duration::from_millis(500))).count(), 5);
    }
}
