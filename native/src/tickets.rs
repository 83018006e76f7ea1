//! Sessions that can be resumed: at a server those it issued tickets for, at a client the tickets that it received.
//!
//! A server keeps them in memory, each worker its own, and each can be used once (RFC 8446 §8.1): a first flight that
//! is replayed finds nothing. A client keeps none here: Python passes each connection the one that it may use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::StoresServerSessions;
use rustls::NamedGroup;

use crate::verifier::{Chain, Verifier};

/// Memory for the sessions of a worker: those of some 5,000 clients. Beyond it the oldest is removed.
const MAX_BYTES: usize = 8 << 20;

/// What rustls promises in a ticket.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What a session costs besides its bytes: its place in the maps.
const OVERHEAD_BYTES: usize = 256;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // whole between any two of our statements
}

struct StoredSession {
    /// rustls' own form, with the keys.
    secret: Vec<u8>,
    chain: Chain,
    issued_at: Instant,
    number: u64,
}

impl StoredSession {
    fn bytes(&self) -> usize {
        self.secret.len() + self.chain.iter().map(|certificate| certificate.len()).sum::<usize>() + OVERHEAD_BYTES
    }
}

#[derive(Default)]
struct Sessions {
    by_ticket: FxHashMap<Vec<u8>, StoredSession>,
    /// Tickets by their age.
    order: BTreeMap<u64, Vec<u8>>,
    issued: u64,
    bytes: usize,
}

impl Sessions {
    fn put(&mut self, ticket: Vec<u8>, secret: Vec<u8>, chain: Chain, issued_at: Instant) {
        self.issued += 1;
        let session = StoredSession { secret, chain, issued_at, number: self.issued };
        self.bytes += session.bytes();
        self.order.insert(session.number, ticket.clone());
        self.by_ticket.insert(ticket, session);
        while self.bytes > MAX_BYTES {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = oldest.clone();
            self.take(&oldest);
        }
    }

    fn take(&mut self, ticket: &[u8]) -> Option<StoredSession> {
        let session = self.by_ticket.remove(ticket)?;
        self.order.remove(&session.number);
        self.bytes -= session.bytes();
        Some(session)
    }
}

/// The sessions that one server endpoint issued tickets for; they outlive its configurations.
#[derive(Default)]
pub struct Issued {
    sessions: Mutex<Sessions>,
    /// Tickets that clients presented, and that were not accepted.
    refused: AtomicU64,
}

impl Issued {
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// rustls' side of `Issued`, under one configuration.
pub struct Store {
    pub issued: Arc<Issued>,
    pub verifier: Arc<Verifier>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store") // no secrets
    }
}

impl StoresServerSessions for Store {
    /// Only of a client whose certificate we accepted: its chain is verified again when the session is resumed.
    fn put(&self, ticket: Vec<u8>, secret: Vec<u8>) -> bool {
        let Some(chain) = Verifier::accepted() else { return false };
        locked(&self.issued.sessions).put(ticket, secret, chain, Instant::now());
        true
    }

    /// TLS 1.2 only.
    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// rustls does not call the verifier for a resumed session. So the chain is verified here, under the current
    /// configuration: with an expired chain, or one of a CA that a reload removed, the handshake is a full one.
    fn take(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let found = locked(&self.issued.sessions).take(ticket);
        let valid = found
            .filter(|session| session.issued_at.elapsed() < LIFETIME)
            .filter(|session| self.verifier.accepts_again(&session.chain));
        if valid.is_none() {
            self.issued.refused.fetch_add(1, Relaxed);
        }
        valid.map(|session| session.secret)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// A ticket, and what rustls needs to use it.
pub type Session = Tls13ClientSessionValue;

/// At a client: the session that one connection may resume, and the newest that its server offered.
#[derive(Debug, Default)]
pub struct ClientTickets {
    to_resume: Mutex<Option<Session>>,
    newest: Mutex<Option<Session>>,
}

impl ClientTickets {
    pub fn new(to_resume: Option<Session>) -> Arc<Self> {
        Arc::new(Self { to_resume: Mutex::new(to_resume), newest: Mutex::default() })
    }

    /// A ticket that was received since the last call.
    pub fn newest(&self) -> Option<Session> {
        locked(&self.newest).take()
    }
}

impl ClientSessionStore for ClientTickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    /// A server may send any number of them: one is kept.
    fn insert_tls13_ticket(&self, _: ServerName<'static>, session: Session) {
        *locked(&self.newest) = Some(session);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Session> {
        locked(&self.to_resume).take()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;

    use super::*;

    fn chain(bytes: usize) -> Chain {
        Chain::from([CertificateDer::from(vec![7; bytes])])
    }

    #[test]
    fn a_session_is_resumed_once() {
        let mut sessions = Sessions::default();
        sessions.put(vec![1], vec![10], chain(100), Instant::now());
        assert_eq!(sessions.take(&[1]).map(|session| session.secret), Some(vec![10]));
        assert!(sessions.take(&[1]).is_none());
        assert!(sessions.take(&[2]).is_none());
        assert_eq!((sessions.by_ticket.len(), sessions.order.len(), sessions.bytes), (0, 0, 0));
    }

    #[test]
    fn the_oldest_is_removed_when_there_is_no_room() {
        let mut sessions = Sessions::default();
        let ticket = |number: u32| number.to_be_bytes().to_vec();
        for number in 0..20_000 {
            sessions.put(ticket(number), vec![0; 1000], chain(700), Instant::now());
            assert!(sessions.bytes <= MAX_BYTES);
        }
        assert_eq!(sessions.by_ticket.len(), sessions.order.len());
        assert!((4000..6000).contains(&sessions.by_ticket.len()));
        assert!(sessions.take(&ticket(0)).is_none());
        assert!(sessions.take(&ticket(19_999)).is_some());
    }

    #[test]
    fn a_session_that_is_larger_than_all_room_is_not_kept() {
        let mut sessions = Sessions::default();
        sessions.put(vec![1], vec![0; MAX_BYTES], chain(1), Instant::now());
        assert_eq!((sessions.by_ticket.len(), sessions.order.len(), sessions.bytes), (0, 0, 0));
    }
}
