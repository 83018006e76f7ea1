//! Datagrams to connections, and what is answered without one.
//!
//! A server's endpoint has the sockets of one slot and every connection on them; a client's has one socket and one
//! connection. What has no connection is answered statelessly or dropped, always counted.

mod arrivals;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{crypto, ClientConfig, ConnectionHandle, EndpointConfig, EndpointEvent, ServerConfig, TimeSource};
use ring::{hkdf, hmac};
use rustc_hash::FxHashMap;

use crate::arena::Id;
use crate::cid::{self, Generator, Ids};
use crate::connection::Conn;
use crate::engine::Engine;
use crate::events::Reason;
use crate::tickets::Issued;
use crate::tls::{self, Credentials, Outgoing};
use crate::transport::{largest_datagram, transport, Limits};
use crate::udp::Wire;

/// Announced to peers: their search for a larger size must not stop at ours.
const MAX_UDP_PAYLOAD: u16 = 65_527;

/// RFC 9000 §15.
const VERSION_1: u32 = 1;

/// Counters since the start, as `qmux.quic.engine.EndpointStats`.
#[derive(Default, Clone)]
pub struct Stats {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    pub datagrams_invalid: u64,
    pub unknown_connection: u64,
    pub stateless_resets_sent: u64,
    pub retries_sent: u64,
    pub initials_refused: u64,
    pub send_blocked: u64,
    pub handshakes_completed: u64,
    pub handshakes_resumed: u64,
    pub handshakes_failed: u64,
}

/// What a server is created with.
pub struct Policy {
    pub limits: Limits,
    pub retry_threshold: usize,
    pub max_connections: usize,
    pub retry_key: Vec<u8>,
    /// The wall clock, for the age of what a Retry gave out.
    pub wall_clock: Arc<dyn TimeSource>,
}

/// Which server a client connects to.
pub struct Remote<'a> {
    pub address: SocketAddr,
    pub server_name: &'a str,
    /// Which worker it asks for; None: any.
    pub lane: Option<u16>,
}

pub struct Server {
    policy: Policy,
    crypto: Arc<dyn crypto::ServerConfig>,
    issued: Arc<Issued>,
    token_key: Arc<hkdf::Prk>,
    refuse: bool,
    failed_at: VecDeque<Instant>,
    /// By the largest datagram of the path.
    configs: FxHashMap<u16, Arc<ServerConfig>>,
}

pub struct Endpoint {
    pub quic: quinn_proto::Endpoint,
    pub ports: Vec<Id>,
    conns: FxHashMap<usize, Id>,
    ids: Arc<Ids>,
    server: Option<Server>,
    pub stats: Stats,
    /// Connections of which Python does not know that they are closed.
    pub open: usize,
    pub half_open: usize,
}

impl Endpoint {
    /// Fails where `tls::server` does.
    pub fn server(slot: u16, reset_key: &[u8], policy: Policy, credentials: Credentials) -> tls::Result<Self> {
        let issued = Arc::<Issued>::default();
        let crypto = tls::server(credentials, issued.clone())?;
        // An HKDF without salt, whose key the supervisor derived: the same at every worker.
        let token_key = Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&policy.retry_key));
        let (configs, failed_at) = (FxHashMap::default(), VecDeque::new());
        let server = Server { policy, crypto, issued, token_key, refuse: false, failed_at, configs };
        let first = server.config(None);
        Ok(Self::new(Ids::new(slot, true), reset_key, Some(first), Some(server)))
    }

    /// Its IDs steer nowhere: a client's socket is shared with no other process.
    pub fn client(reset_key: &[u8]) -> Self {
        Self::new(Ids::new(0, false), reset_key, None, None)
    }

    fn new(ids: Arc<Ids>, reset_key: &[u8], config: Option<Arc<ServerConfig>>, server: Option<Server>) -> Self {
        let mut endpoint_config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
        let shared = ids.clone();
        endpoint_config.cid_generator(move || Box::new(Generator(shared.clone()))).min_reset_interval(Duration::ZERO); // `Ids` limits them
        let announced = endpoint_config.max_udp_payload_size(MAX_UDP_PAYLOAD);
        debug_assert!(announced.is_ok(), "the largest that RFC 9000 §18.2 allows");
        Self {
            quic: quinn_proto::Endpoint::new(Arc::new(endpoint_config), config, true, None),
            ports: Vec::new(),
            conns: FxHashMap::default(),
            ids,
            server,
            stats: Stats::default(),
            open: 0,
            half_open: 0,
        }
    }

    /// Limits and credentials are for connections that begin from now on, tickets stay good for as long as their clients
    /// are. The threshold and the cap hold at once. Fails where `tls::server` does, and changes nothing then.
    pub fn reconfigure(
        &mut self,
        limits: Limits,
        retry_threshold: usize,
        max_connections: usize,
        credentials: Credentials,
    ) -> tls::Result<()> {
        if let Some(server) = &mut self.server {
            server.crypto = tls::server(credentials, server.issued.clone())?;
            let policy = &mut server.policy;
            (policy.limits, policy.retry_threshold, policy.max_connections) =
                (limits, retry_threshold, max_connections);
            let surplus = server.failed_at.len().saturating_sub(retry_threshold.max(1));
            server.failed_at.drain(..surplus);
            server.configs.clear();
            self.quic.set_server_config(Some(server.config(None)));
        }
        Ok(())
    }

    pub fn set_live_slots(&self, slots: Vec<u16>) {
        self.ids.set_live(slots);
    }

    pub fn refuse_new(&mut self, refuse: bool) {
        if let Some(server) = &mut self.server {
            server.refuse = refuse;
        }
    }

    pub fn foreign_packets(&self) -> u64 {
        self.ids.foreign.load(Relaxed)
    }

    pub fn unknown_connection(&self) -> u64 {
        self.stats.unknown_connection + self.ids.unknown.load(Relaxed)
    }

    pub fn tickets_refused(&self) -> u64 {
        self.server.as_ref().map_or(0, |server| server.issued.refused())
    }

    pub fn handshake_completed(&mut self, resumed: bool) {
        self.half_open -= 1;
        self.stats.handshakes_completed += 1;
        self.stats.handshakes_resumed += u64::from(resumed);
    }

    pub fn connection_over(&mut self, was_connected: bool, now: Instant) {
        self.open -= 1;
        if !was_connected {
            self.half_open -= 1;
            self.handshake_failed(now);
        }
    }

    fn handshake_failed(&mut self, now: Instant) {
        self.stats.handshakes_failed += 1;
        if let Some(server) = &mut self.server {
            server.failed_at.push_back(now);
            if server.failed_at.len() > server.policy.retry_threshold.max(1) {
                server.failed_at.pop_front();
            }
        }
    }

    /// Nothing comes for this connection any more: later packets are a stranger's.
    pub fn forget(&mut self, handle: ConnectionHandle) {
        if self.conns.remove(&handle.0).is_some() {
            // None: `Drained` has no answer.
            let _ = self.quic.handle_event(handle, EndpointEvent::drained());
        }
    }

    pub fn connections(&self) -> Vec<Id> {
        self.conns.values().copied().collect()
    }

    fn added(&mut self, handle: ConnectionHandle, conn: Id) {
        let before = self.conns.insert(handle.0, conn);
        debug_assert!(before.is_none(), "quinn gave a handle away that is still in use here");
        self.open += 1;
        self.half_open += 1;
    }

    /// Count what quinn dropped without a word: a long header of our version was well-formed.
    fn dropped(&mut self, head: &[u8]) {
        let is_long = head.first().is_some_and(|first| first & 0x80 != 0);
        match is_long && version(head) == Some(VERSION_1) && cid::destination(head).is_some() {
            true => self.stats.unknown_connection += 1,
            false => self.stats.datagrams_invalid += 1,
        }
    }
}

fn version(head: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(head.get(1..5)?.try_into().ok()?))
}

impl Server {
    fn config(&self, payload: Option<u16>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::new(self.crypto.clone(), self.token_key.clone());
        config.transport_config(transport(&self.policy.limits, payload));
        config.time_source(self.policy.wall_clock.clone());
        Arc::new(config)
    }

    fn config_for(&mut self, payload: Option<u16>) -> Arc<ServerConfig> {
        let size = largest_datagram(payload);
        if let Some(config) = self.configs.get(&size) {
            return config.clone();
        }
        let config = self.config(Some(size));
        self.configs.insert(size, config.clone());
        config
    }

    /// Handshakes that are half open or failed within that time: a flood that fails at once costs as much.
    fn load(&mut self, half_open: usize, now: Instant) -> usize {
        let patience = self.policy.limits.handshake_timeout;
        while self.failed_at.front().is_some_and(|&at| now.saturating_duration_since(at) > patience) {
            self.failed_at.pop_front();
        }
        half_open + self.failed_at.len()
    }
}

impl Engine {
    /// A client's connection, on a connected socket of its own.
    pub fn connect(
        &mut self,
        wire: Box<dyn Wire>,
        remote: &Remote<'_>,
        outgoing: Outgoing,
        limits: &Limits,
        now: Instant,
    ) -> Result<Id, String> {
        let key: [u8; 32] = rand::random();
        let endpoint_id = self.endpoints.insert(Endpoint::client(&key));
        let port = match self.add_port(endpoint_id, wire) {
            Ok(port) => port,
            Err(error) => {
                self.endpoints.remove(endpoint_id);
                return Err(error.to_string());
            }
        };
        let (peer, lane) = (remote.address, remote.lane);
        let payload = self.ports.get(port).and_then(|port| port.payload_towards(peer));
        let mut config = ClientConfig::new(outgoing.crypto);
        config.transport_config(transport(limits, payload));
        config.initial_dst_cid_provider(Arc::new(move || cid::initial(lane)));
        let started = match self.endpoints.get_mut(endpoint_id) {
            Some(endpoint) => {
                endpoint.quic.connect(now, config, peer, remote.server_name).map_err(|error| error.to_string())
            }
            None => Err("the endpoint is gone".to_owned()),
        };
        let (handle, quic) = match started {
            Ok(started) => started,
            Err(error) => {
                self.remove_endpoint(endpoint_id);
                return Err(error);
            }
        };
        let id = self.conns.insert(Conn::new(quic, handle, endpoint_id, port, Some(outgoing.purse), now));
        if let Some(endpoint) = self.endpoints.get_mut(endpoint_id) {
            endpoint.added(handle, id);
        }
        self.started(id, now + limits.handshake_timeout);
        self.arm_ping(id, now);
        Ok(id)
    }

    /// CONNECTION_CLOSE on every connection, then the sockets go.
    pub fn close_endpoint(&mut self, endpoint: Id, code: u64, reason: &[u8], now: Instant) {
        let conns = self.endpoints.get(endpoint).map(Endpoint::connections).unwrap_or_default();
        for conn in conns {
            self.close_connection(conn, code, reason, now);
            self.forget_connection(conn);
        }
        self.remove_endpoint(endpoint);
    }

    pub fn remove_endpoint(&mut self, endpoint: Id) {
        if let Some(endpoint) = self.endpoints.remove(endpoint) {
            for port in endpoint.ports {
                self.ports.remove(port);
            }
        }
    }

    /// Before the handshake an ICMP answer is all there is; later it can be forged (RFC 9000 §9 ignores it too).
    pub fn network_failed(&mut self, endpoint: Id, error: &io::Error, now: Instant) {
        let Some(endpoint) = self.endpoints.get(endpoint).filter(|endpoint| endpoint.server.is_none()) else { return };
        let (kind, code, message) = match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => ("refused", 0, "nothing listens on that UDP port".to_owned()),
            // The number says whether a firewall or the routing is to blame.
            Some(number @ (libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EPERM | libc::EACCES)) => {
                ("unreachable", number.unsigned_abs().into(), error.to_string())
            }
            _ => return,
        };
        for id in endpoint.connections() {
            if self.conns.get(id).is_some_and(|conn| !conn.is_connected && !conn.is_over) {
                self.fail_connection(id, Reason { kind, code, message: message.clone() }, now);
            }
        }
    }
}
