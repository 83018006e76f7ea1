//! Entry points for fuzzing: their input is what a peer can send, and none of it may cause a panic.
//!
//! `native/fuzz` runs them until it is stopped, `tests::anything` a little in every run of the tests.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::StdSystemTime;
use quinn_udp::{RecvMeta, Transmit};
use rustls::pki_types::CertificateDer;

use crate::arena::Id;
use crate::cid;
use crate::endpoint::{Endpoint, Policy};
use crate::engine::Engine;
use crate::frames::{self, Parsed};
use crate::tls::Credentials;
use crate::transport::Limits;
use crate::udp::Wire;
use crate::verifier::{Check, Identity, Refusal};

/// `qmux.protocol.frames`: the largest body, its type and length, and the stream's type.
const LARGEST_HEAD: usize = 1024 + 8;

/// The head of any datagram.
pub fn destination(datagram: &[u8]) {
    let Some(id) = cid::destination(datagram) else { return };
    assert!(datagram.len() > id.len());
    assert!(!cid::has_initial_form(id) || cid::issued_slot(id).is_none());
}

/// The start of a stream, as it arrives: a parser returns how much more it wants, and never wants too much.
pub fn stream_head(data: &[u8]) {
    read_by_wants(data, frames::new_conn);
    read_by_wants(data, frames::answer);
    if let Parsed::Whole(new) = frames::new_conn(data) {
        // Not always the same bytes: there are several ways to write a number, and fields of a newer release.
        if let Some(written) = frames::encode_new_conn(&new) {
            assert!(matches!(frames::new_conn(&written), Parsed::Whole(again) if again == new));
        }
    }
}

fn read_by_wants<'a, T>(data: &'a [u8], parse: impl Fn(&'a [u8]) -> Parsed<T>) {
    let mut end = 0;
    while let Parsed::Wants(more) = parse(&data[..end]) {
        assert!(more > 0 && end + more <= LARGEST_HEAD);
        if end + more > data.len() {
            return;
        }
        end += more;
    }
}

/// Takes every datagram, and has none.
struct NullWire;

impl Wire for NullWire {
    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn max_segments(&self) -> usize {
        1
    }

    fn payload_towards(&self, _: SocketAddr) -> Option<u16> {
        None
    }

    fn send(&mut self, _: &Transmit<'_>) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[derive(Debug)]
struct AcceptAll;

impl Check for AcceptAll {
    fn check(&self, _: &[CertificateDer<'_>]) -> Result<Identity, Refusal> {
        Ok(Arc::new(()))
    }
}

/// A server that receives datagrams from unknown addresses.
pub struct Server {
    engine: Engine,
    endpoint: Id,
    port: Id,
    fed: u64,
}

impl Server {
    /// `chain` and `key` as DER.
    pub fn new(chain: Vec<u8>, key: Vec<u8>) -> Self {
        let limits = Limits {
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            max_streams: 1,
            stream_window: 1 << 16,
            connection_window: Some(1 << 16),
            datagrams: true,
        };
        let policy = Policy {
            limits,
            retry_threshold: 2,
            max_connections: 4,
            retry_key: vec![7; 32],
            wall_clock: Arc::new(StdSystemTime),
        };
        let credentials = Credentials { chain: vec![chain], key, alpn: b"fuzz".to_vec(), check: Arc::new(AcceptAll) };
        let mut engine = Engine::new().expect("descriptors for an engine");
        let endpoint =
            engine.endpoints.insert(Endpoint::server(3, b"reset", policy, credentials).expect("credentials that fit"));
        let port = engine.add_port(endpoint, Box::new(NullWire)).expect("no descriptor for epoll");
        let mut server = Self { engine, endpoint, port, fed: 0 };
        server.endpoint().set_live_slots(vec![3, 4]);
        server
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        self.engine.endpoints.get_mut(self.endpoint).expect("it was not removed")
    }

    /// One datagram; everything that follows from it at once.
    pub fn feed(&mut self, datagram: &[u8]) {
        self.fed += 1;
        let now = Instant::now();
        let addr = (Ipv4Addr::LOCALHOST, 1024 + (self.fed % 60_000) as u16).into();
        let meta = RecvMeta { addr, len: datagram.len(), stride: datagram.len(), ..RecvMeta::default() };
        self.engine.datagram(self.port, self.endpoint, &meta, datagram.into(), now);
        while self.engine.is_busy() {
            self.engine.step(now);
        }
        self.check();
    }

    /// Everything was counted, and no handshake was completed.
    fn check(&mut self) {
        let conns = self.engine.conns.len();
        let fed = self.fed;
        let endpoint = self.endpoint();
        let strangers = endpoint.stats.datagrams_invalid + endpoint.unknown_connection() + endpoint.foreign_packets();
        assert_eq!(endpoint.stats.datagrams_received, fed);
        assert!(strangers <= fed);
        assert!(endpoint.stats.datagrams_sent <= 8 * fed + 8);
        assert_eq!(endpoint.stats.handshakes_completed, 0);
        assert!(endpoint.open <= conns && endpoint.open <= 4);
    }
}
