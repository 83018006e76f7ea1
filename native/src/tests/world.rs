//! Engines, the network between them, and the time that passes where nothing else is to be done.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quinn_proto::Dir;
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::CertificateDer;

use super::net::{Faults, Net, JUMBO_PAYLOAD};
use crate::arena::Id;
use crate::connection::Conn;
use crate::endpoint::{Endpoint, Policy, Remote};
use crate::engine::Engine;
use crate::events::{Event, Reason};
use crate::stream::{stream_id, Held, Read, Use};
use crate::tickets::Session;
use crate::tls::{Client, Credentials};
use crate::transport::Limits;
use crate::verifier::{Check, Identity, Refusal};

pub const MS: Duration = Duration::from_millis(1);
pub const S: Duration = Duration::from_secs(1);

pub const RESET_KEY: &[u8] = b"the same at every worker of a server";
pub const ALPN: &[u8] = b"qmux-test";

/// Steps that one moment may take: more, and an engine is busy with nothing.
const STEPS: usize = 10_000;

pub const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 8443);

pub fn client_address(number: u16) -> SocketAddr {
    (Ipv4Addr::new(198, 51, 100, 7), 10_000 + number).into()
}

/// What the check is to say.
#[derive(Clone, Debug)]
pub enum Say {
    Accept(&'static str),
    Refuse(Refusal),
}

impl Check for Say {
    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, Refusal> {
        assert!(!chain.is_empty());
        match self {
            Say::Accept(identity) => Ok(Arc::new(*identity)),
            Say::Refuse(refusal) => Err(refusal.clone()),
        }
    }
}

fn certificate() -> &'static CertifiedKey<KeyPair> {
    static MADE: OnceLock<CertifiedKey<KeyPair>> = OnceLock::new();
    MADE.get_or_init(|| rcgen::generate_simple_self_signed(["qmux".to_owned()]).expect("a name that can be one"))
}

pub fn credentials(say: Say) -> Credentials {
    let made = certificate();
    Credentials {
        chain: vec![made.cert.der().to_vec()],
        key: made.signing_key.serialize_der(),
        alpn: ALPN.to_vec(),
        check: Arc::new(say),
    }
}

pub fn identity_that(say: Say) -> Rc<Client> {
    Rc::new(Client::new(credentials(say)).expect("credentials that fit"))
}

pub fn limits() -> Limits {
    Limits {
        idle_timeout: 30 * S,
        keep_alive: 10 * S,
        handshake_timeout: 5 * S,
        max_streams: 64,
        stream_window: 1 << 20,
        connection_window: None,
        datagrams: true,
    }
}

/// How a server is set up.
pub struct Serve {
    pub slot: u16,
    pub limits: Limits,
    pub retry_threshold: usize,
    pub max_connections: usize,
    pub reset_key: &'static [u8],
    pub say: Say,
    /// What its interface carries.
    pub payload: u16,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            slot: 3,
            limits: limits(),
            retry_threshold: 100,
            max_connections: 100,
            reset_key: RESET_KEY,
            say: Say::Accept("a client"),
            payload: JUMBO_PAYLOAD,
        }
    }
}

/// How a client dials.
pub struct Dial {
    pub lane: Option<u16>,
    pub limits: Limits,
    pub say: Say,
    /// Whose sessions can be resumed; None: one of its own, with `say`.
    pub identity: Option<Rc<Client>>,
    pub ticket: Option<Session>,
    pub payload: u16,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            lane: None,
            limits: limits(),
            say: Say::Accept("a server"),
            identity: None,
            ticket: None,
            payload: JUMBO_PAYLOAD,
        }
    }
}

/// One process: its engine, and the events that it reported.
pub struct Side {
    pub engine: Engine,
    ports: Vec<(SocketAddr, Id)>,
    pub events: Vec<Event>,
}

impl Side {
    fn new() -> Self {
        let engine = Engine::new().expect("descriptors for an engine");
        Self { engine, ports: Vec::new(), events: Vec::new() }
    }

    pub fn conn(&mut self, id: Id) -> &mut Conn {
        self.engine.conns.get_mut(id).expect("the connection is there")
    }

    /// Remove the first event that `wanted` accepts.
    pub fn take<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> Option<T> {
        let index = self.events.iter().position(|event| wanted(event).is_some())?;
        wanted(&self.events.remove(index))
    }

    pub fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }

    /// Whether `Connected` was reported to Python.
    pub fn is_connected(&self, id: Id) -> bool {
        self.engine.conns.get(id).is_some_and(|conn| conn.is_connected)
    }

    /// How the connection was closed, where that was reported.
    pub fn closed(&self, id: Id) -> Option<&Reason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { conn, reason } if *conn == id => Some(reason),
            _ => None,
        })
    }

    pub fn open(&mut self, conn: Id) -> u64 {
        let conn = self.conn(conn);
        let stream = conn.quic.streams().open(Dir::Bi).expect("the peer allows a stream");
        conn.streams.insert(stream, Use::Held(Held::default()));
        stream.into()
    }

    pub fn write(&mut self, conn: Id, stream: u64, data: &[u8]) -> usize {
        self.engine.write_stream(conn, stream_id(stream), data, false)
    }

    pub fn finish(&mut self, conn: Id, stream: u64) {
        self.engine.write_stream(conn, stream_id(stream), &[], true);
    }

    /// What is there, up to `limit`; None: nothing yet.
    pub fn read(&mut self, conn: Id, stream: u64, limit: usize) -> Option<Vec<u8>> {
        match self.engine.read_stream(conn, stream_id(stream), limit) {
            Read::Data(data) => Some(data),
            Read::End => Some(Vec::new()),
            Read::Wait => None,
        }
    }

    /// Nothing is kept of what was: neither in tables nor on a timer.
    pub fn is_empty(&self) -> bool {
        let engine = &self.engine;
        engine.conns.len() == 0 && engine.relays.len() == 0 && engine.timers.next().is_none() && !engine.is_busy()
    }
}

/// A server, a process with clients, and the network between them.
pub struct World {
    pub net: Net,
    pub now: Instant,
    pub server: Side,
    pub client: Side,
    /// The server's endpoint.
    pub endpoint: Id,
    /// The server's process stands still: what arrives waits in its socket.
    pub is_server_paused: bool,
    clients: u16,
}

/// A connection that both ends know of.
pub struct Pair {
    pub client: Id,
    pub server: Id,
}

impl World {
    pub fn new(faults: Faults) -> Self {
        Self::with(faults, 1, Serve::default())
    }

    pub fn with(faults: Faults, seed: u64, serve: Serve) -> Self {
        let now = Instant::now();
        let (server, client) = (Side::new(), Side::new());
        let net = Net::new(now, seed, faults);
        let mut world = Self { net, now, server, client, endpoint: 0, is_server_paused: false, clients: 0 };
        world.serve(serve);
        world
    }

    /// A server starts again: whatever was there knows nothing any more.
    pub fn serve(&mut self, serve: Serve) {
        let Serve { slot, limits, retry_threshold, max_connections, reset_key, say, payload } = serve;
        let policy = Policy {
            limits,
            retry_threshold,
            max_connections,
            retry_key: vec![7; 32],
            wall_clock: Arc::new(self.net.clone()),
        };
        let endpoint = Endpoint::server(slot, reset_key, policy, credentials(say)).expect("credentials that fit");
        self.server = Side::new();
        let engine = &mut self.server.engine;
        self.endpoint = engine.endpoints.insert(endpoint);
        let port = engine.add_port(self.endpoint, self.net.wire(SERVER, payload)).expect("no descriptor for epoll");
        self.server.ports.push((SERVER, port));
    }

    pub fn endpoint(&mut self) -> &mut Endpoint {
        self.server.engine.endpoints.get_mut(self.endpoint).expect("the server is there")
    }

    /// A client's connection, not yet complete, from an address of its own.
    pub fn dial(&mut self, dial: Dial) -> Id {
        let Dial { lane, limits, say, identity, ticket, payload } = dial;
        let address = client_address(self.clients);
        self.clients += 1;
        let wire = self.net.wire(address, payload);
        let remote = Remote { address: SERVER, server_name: "qmux", lane };
        let client = identity.unwrap_or_else(|| identity_that(say));
        let outgoing = client.outgoing(ticket).expect("credentials that fit");
        let conn = self.client.engine.connect(wire, &remote, outgoing, &limits, self.now).expect("a connection begins");
        let port = self.client.conn(conn).port;
        self.client.ports.push((address, port));
        conn
    }

    /// A connection that both ends reported as connected.
    pub fn pair(&mut self) -> Pair {
        self.pair_with(Dial::default())
    }

    pub fn pair_with(&mut self, dial: Dial) -> Pair {
        let client = self.dial(dial);
        self.connected(client)
    }

    /// The pair of a client that dialled.
    pub fn connected(&mut self, client: Id) -> Pair {
        let connected = |event: &Event| match event {
            Event::Connected { conn, .. } => Some(*conn),
            _ => None,
        };
        self.until(|world| world.server.has(|event| connected(event).is_some()) && world.client.is_connected(client));
        let server = self.server.take(connected).expect("looked for just now");
        Pair { client, server }
    }

    /// A stream that the client opened, with `first` as its first bytes; both ends have it.
    pub fn stream(&mut self, pair: &Pair, first: &[u8]) -> u64 {
        let stream = self.client.open(pair.client);
        self.client.write(pair.client, stream, first);
        let opened = |event: &Event| match event {
            Event::StreamOpened { conn, stream: opened, .. } if (*conn, *opened) == (pair.server, stream) => Some(()),
            _ => None,
        };
        self.until(|world| world.server.take(opened).is_some());
        stream
    }

    /// Every engine does what it has to do at this moment.
    pub fn settle(&mut self) {
        for _ in 0..STEPS {
            let arrived = self.net.arrive(self.now);
            let mut busy = false;
            let sides = [Some(&mut self.server).filter(|_| !self.is_server_paused), Some(&mut self.client)];
            for side in sides.into_iter().flatten() {
                side.ports.retain(|&(_, port)| side.engine.ports.get(port).is_some());
                for &(_, port) in side.ports.iter().filter(|(address, _)| arrived.contains(address)) {
                    side.engine.port_polled(port, libc::EPOLLIN);
                }
                let polled = side.engine.step(self.now);
                side.events.append(&mut side.engine.events);
                busy |= polled > 0 || side.engine.is_busy();
            }
            if !busy {
                return;
            }
        }
        panic!("an engine is busy with nothing");
    }

    /// The server's process goes on, and epoll tells it what has arrived.
    pub fn resume_server(&mut self) {
        self.is_server_paused = false;
        for &(_, port) in &self.server.ports {
            self.server.engine.port_polled(port, libc::EPOLLIN);
        }
    }

    /// The kernel of this address takes datagrams again.
    pub fn unblock(&mut self, address: SocketAddr) {
        self.net.block(address, false);
        for side in [&mut self.server, &mut self.client] {
            for &(_, port) in side.ports.iter().filter(|&&(other, _)| other == address) {
                side.engine.port_polled(port, libc::EPOLLOUT);
            }
        }
    }

    /// The next moment at which something happens.
    fn next(&self) -> Option<Instant> {
        let server = self.server.engine.timers.next().filter(|_| !self.is_server_paused);
        let client = self.client.engine.timers.next();
        server.into_iter().chain(client).chain(self.net.next_arrival()).min()
    }

    /// Let time pass until `done`; whether it came to that within `limit`.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            match self.next() {
                Some(at) if at <= end => self.now = at.max(self.now),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
        done(self)
    }

    /// Wait until `done`, for a minute at most.
    #[track_caller]
    pub fn until(&mut self, done: impl FnMut(&mut Self) -> bool) {
        let started = self.now;
        assert!(self.run(60 * S, done), "not within {:?}", self.now - started);
    }

    pub fn pass(&mut self, time: Duration) {
        self.run(time, |_| false);
    }
}
