//! One QUIC connection: its limits, its events, what it says about itself, and how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, Dir, Event as QuicEvent, FrameStats, IdleTimeout,
    MtuDiscoveryConfig, Side, StreamEvent, StreamId, TransportConfig, TransportErrorCode, VarInt,
};
use rustc_hash::FxHashMap;

use crate::arena::Id;
use crate::cid;
use crate::dial::Serving;
use crate::engine::Engine;
use crate::events::{Event, Outcome, Reason};
use crate::recovery::{self, WatchedCubic};
use crate::stream::Use;
use crate::tickets::Purse;
use crate::timers::Timer;
use crate::verifier::Peer;

/// What every path carries (RFC 9000 §14): the search begins here, and a black hole leads back.
const SMALLEST_DATAGRAM: u16 = 1200;

/// What the loopback interface carries under IPv6. Other paths end the search at the MTU of their interface. From 8,952
/// bytes to this the cost of a byte falls by 15 to 25 %: less to do for each packet, and fewer writes to sockets.
const LARGEST_DATAGRAM: u16 = 65_488;

/// Sent and not acknowledged, in all streams together: on a path whose delay is nearly nothing, such as loopback, all
/// of it waits in the receiver's socket, and small requests wait behind it.
const LEAST_SEND_WINDOW_BYTES: u64 = 1 << 20;
const SEND_WINDOW_BYTES: u64 = 2 << 20;

/// What the path itself can hold is on top: 20 Gbit/s times its delay.
const SEND_WINDOW_BYTES_PER_S: f64 = 2.5e9;

fn send_window(min_rtt: Duration) -> u64 {
    let on_the_way = (min_rtt.as_secs_f64() * SEND_WINDOW_BYTES_PER_S) as u64;
    (LEAST_SEND_WINDOW_BYTES + on_the_way).min(SEND_WINDOW_BYTES)
}

/// A lost first packet is sent again after three times this; RFC 9002 §6.2.2 has 333 ms, a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

const DATAGRAMS_OUT_BYTES: usize = 256 << 10;
const DATAGRAMS_IN_BYTES: usize = 1 << 20;

/// Streams × their window bound a peer, never the connection: one stalled stream must not stop its siblings.
const UNLIMITED: VarInt = VarInt::MAX;

/// RFC 9000 §20.1: 0x100 and a TLS alert.
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

/// The alerts about a certificate (RFC 8446 §6): sent by us, they are about the peer's.
const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x100 + 42..=0x100 + 48;
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;

/// What a connection is made with.
#[derive(Clone)]
pub struct Limits {
    pub idle_timeout: Duration,
    pub keep_alive: Duration,
    pub handshake_timeout: Duration,
    pub max_streams: u32,
    pub stream_window: u64,
    /// None: unlimited.
    pub connection_window: Option<u64>,
}

/// quinn's configuration for a path whose interface takes `payload` bytes.
pub fn transport(limits: &Limits, payload: Option<u16>) -> Arc<TransportConfig> {
    let window = |bytes: u64| VarInt::from_u64(bytes).unwrap_or(UNLIMITED);
    let mut config = TransportConfig::default();
    config
        // Longer than a VarInt of milliseconds: no timeout.
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .keep_alive_interval(Some(limits.keep_alive))
        .max_concurrent_bidi_streams(limits.max_streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window(limits.stream_window))
        .receive_window(limits.connection_window.map_or(UNLIMITED, window))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_send_buffer_size(DATAGRAMS_OUT_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAMS_IN_BYTES))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(SMALLEST_DATAGRAM)
        .min_mtu(SMALLEST_DATAGRAM)
        .congestion_controller_factory(Arc::new(WatchedCubic::default()));
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(largest_datagram(payload));
    config.mtu_discovery_config(Some(search));
    Arc::new(config)
}

/// Up to where the size is searched for.
pub fn largest_datagram(payload: Option<u16>) -> u16 {
    payload.unwrap_or(LARGEST_DATAGRAM).clamp(SMALLEST_DATAGRAM, LARGEST_DATAGRAM)
}

/// Frames that ask for an acknowledgement (RFC 9002 §2).
fn asking_frames(f: &FrameStats) -> u64 {
    f.ping
        + f.stream
        + f.crypto
        + f.datagram
        + f.max_data
        + f.max_stream_data
        + f.reset_stream
        + f.stop_sending
        + f.max_streams_bidi
        + f.new_connection_id
        + f.path_challenge
        + f.path_response
        + u64::from(f.handshake_done)
}

pub struct Conn {
    pub quic: Connection,
    pub handle: ConnectionHandle,
    pub endpoint: Id,
    /// The socket that the peer's newest packet came on.
    pub port: Id,
    pub streams: FxHashMap<StreamId, Use>,
    /// Whom the engine serves here without Python.
    pub users: u64,
    /// Python's users, and how many there may be in all.
    pub others: u64,
    pub most_users: u64,
    /// Where they go, once it is registered.
    pub serving: Option<Serving>,
    /// In the queue of those that may have something to send.
    pub dirty: bool,
    pub quic_at: Option<Instant>,
    pub handshake_at: Option<Instant>,
    /// Python knows that it is connected.
    pub is_connected: bool,
    /// Python knows that it is closed.
    pub is_over: bool,
    /// Events of streams that came before `Connected` was told, each once.
    early: Vec<StreamEvent>,
    /// A client's tickets; None at a server.
    purse: Option<Arc<Purse>>,
    /// The two steering bytes of the peer's ID in use.
    pub peer_prefix: Option<u16>,
    frames_heard: u64,
    pub heard_at: Instant,
    frames_asked: u64,
    asked_at: Option<Instant>,
    send_window: u64,
    /// Of the peer's streams: how many may be open, and how many were when places were last announced.
    max_streams: u64,
    open_streams: u64,
}

impl Conn {
    pub fn new(
        quic: Connection,
        handle: ConnectionHandle,
        endpoint: Id,
        port: Id,
        purse: Option<Arc<Purse>>,
        now: Instant,
    ) -> Self {
        let max_streams = quic.max_concurrent_streams(Dir::Bi);
        Self {
            quic,
            handle,
            endpoint,
            port,
            streams: FxHashMap::default(),
            users: 0,
            others: 0,
            most_users: u64::MAX,
            serving: None,
            dirty: false,
            quic_at: None,
            handshake_at: None,
            is_connected: false,
            is_over: false,
            early: Vec::new(),
            purse,
            peer_prefix: None,
            frames_heard: 0,
            heard_at: now,
            frames_asked: 0,
            asked_at: None,
            send_window: SEND_WINDOW_BYTES,
            max_streams,
            open_streams: 0,
        }
    }

    pub fn is_client(&self) -> bool {
        self.quic.side() == Side::Client
    }

    /// A packet of this connection, from wherever.
    pub fn receive(&mut self, event: quinn_proto::ConnectionEvent, now: Instant) {
        let peer = self.quic.remote_address();
        self.quic.handle_event(event);
        if self.quic.remote_address() != peer {
            // quinn takes another port for the same path, and sends its PATH_CHALLENGE in a datagram of the size that was
            // found there. Where it is another path after all, and a smaller one, that never arrives, and what would do
            // goes to the old address until the connection is idle.
            self.quic.path_changed(now);
        }
    }

    /// Look what came in: frames are counted only where a packet was authentic.
    pub fn heard(&mut self, now: Instant) {
        let f = self.quic.stats().frame_rx;
        let frames = f.acks + asking_frames(&f);
        if frames != self.frames_heard {
            self.frames_heard = frames;
            self.heard_at = now;
        }
    }

    /// Look what went out: `data` is the newest packet, for its destination ID.
    pub fn sent(&mut self, data: &[u8], now: Instant) {
        if let Some(&[high, low, ..]) = cid::destination(data) {
            self.peer_prefix = Some(u16::from_be_bytes([high, low]));
        }
        let stats = self.quic.stats();
        let window = send_window(stats.path.min_rtt);
        if window.abs_diff(self.send_window) > self.send_window / 8 {
            self.send_window = window;
            self.quic.set_send_window(window);
        }
        // A lost probe of a larger size is nothing that the peer owes us.
        let asked = asking_frames(&stats.frame_tx).saturating_sub(stats.path.sent_plpmtud_probes);
        if asked != self.frames_asked {
            self.frames_asked = asked;
            self.asked_at = Some(now);
        }
    }

    /// Whether the newest packet that asks for an acknowledgement has none yet.
    pub fn is_outstanding(&self) -> bool {
        self.asked_at > recovery::seen(&self.quic).acked_sent_at
    }

    pub fn raise_limits(&mut self, max_streams: u32) {
        self.max_streams = max_streams.into();
        self.quic.set_max_concurrent_streams(Dir::Bi, max_streams.into());
        self.quic.set_receive_window(UNLIMITED);
    }

    /// quinn announces the places of streams that ended an eighth of all at a time. Where few are left that is too late:
    /// somebody may wait for the next one.
    pub fn announce_places(&mut self) {
        let open = self.quic.streams().remote_open_streams(Dir::Bi);
        let were_open = std::mem::replace(&mut self.open_streams, open);
        let many = self.max_streams / 4 * 3;
        if open >= many && (were_open < many || open < were_open) {
            for count in [1, self.max_streams] {
                let count = VarInt::from_u64(count).unwrap_or(VarInt::MAX);
                self.quic.set_max_concurrent_streams(Dir::Bi, count); // an eighth of 1 is nothing
            }
        }
    }

    /// At a client, before it is connected: whether what it writes goes out with the first packets (0-RTT).
    pub fn may_write_early(&self) -> bool {
        self.is_client() && self.quic.has_0rtt() && self.quic.is_handshaking() && !self.is_over
    }

    fn came_early(&mut self, event: StreamEvent) {
        if !self.early.contains(&event) {
            self.early.push(event);
        }
    }

    fn peer(&self) -> Option<Peer> {
        let peer = self.quic.crypto_session().peer_identity()?;
        peer.downcast::<Peer>().ok().map(|peer| *peer)
    }

    /// The reason as `qmux.quic.engine.CloseReason` has it.
    fn reason(&self, error: &ConnectionError) -> Reason {
        let reason = |kind, code, message: &str| Reason { kind, code, message: message.to_owned() };
        match error {
            ConnectionError::ApplicationClosed(close) => {
                reason("application", close.error_code.into(), &String::from_utf8_lossy(&close.reason))
            }
            ConnectionError::ConnectionClosed(close) => {
                let words = String::from_utf8_lossy(&close.reason);
                match close.error_code {
                    // What an application's close looks like before the handshake is complete (RFC 9000 §10.2.3).
                    TransportErrorCode::APPLICATION_ERROR if words.is_empty() => {
                        reason("application", 0, "closed before the handshake was complete")
                    }
                    TransportErrorCode::APPLICATION_ERROR => reason("application", 0, &words),
                    code => transport_reason(code, &words),
                }
            }
            ConnectionError::TransportError(error) => {
                let code = u64::from(error.code);
                match self.peer() {
                    Some(Peer::Rejected(refusal)) => reason("certificate", code, &refusal.reason),
                    _ if CERTIFICATE_ALERTS.contains(&code) || code == CERTIFICATE_REQUIRED => {
                        reason("certificate", code, &error.reason)
                    }
                    _ => transport_reason(error.code, &error.reason),
                }
            }
            ConnectionError::Reset => reason("reset", 0, "the server does not know this connection any more"),
            ConnectionError::TimedOut if self.is_connected => reason("idle", 0, ""),
            ConnectionError::TimedOut => reason("timeout", 0, ""),
            ConnectionError::LocallyClosed => reason("local", 0, ""),
            // RFC 9368 §8: VERSION_NEGOTIATION_ERROR
            ConnectionError::VersionMismatch => {
                reason("transport", 0x11, "the peer speaks no version of QUIC that we do")
            }
            ConnectionError::CidsExhausted => reason("transport", 0x1, "no connection ID is left"),
        }
    }
}

fn transport_reason(code: TransportErrorCode, message: &str) -> Reason {
    let code = u64::from(code);
    let message = message.to_owned();
    match CRYPTO_ERRORS.contains(&code) {
        true => Reason { kind: "tls", code: code - CRYPTO_ERRORS.start(), message },
        false => Reason { kind: "transport", code, message },
    }
}

impl Engine {
    /// This connection may have something to send.
    pub fn mark(&mut self, id: Id) {
        if let Some(conn) = self.conns.get_mut(id) {
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push_back(id);
            }
        }
    }

    /// Everything that quinn has to say about one connection.
    pub fn connection_events(&mut self, id: Id, now: Instant) {
        loop {
            let Some(conn) = self.conns.get_mut(id) else { return };
            let endpoint = self.endpoints.get_mut(conn.endpoint);
            if let Some(endpoint) = endpoint {
                while let Some(event) = conn.quic.poll_endpoint_events() {
                    if let Some(answer) = endpoint.quic.handle_event(conn.handle, event) {
                        conn.quic.handle_event(answer);
                    }
                }
            }
            let Some(event) = conn.quic.poll() else { break };
            self.connection_event(id, event, now);
        }
        if let Some(ticket) = self.conns.get(id).and_then(|conn| conn.purse.as_ref()).and_then(|purse| purse.newest()) {
            self.events.push(Event::Ticket { conn: id, ticket });
        }
        self.announce(id, now);
    }

    fn connection_event(&mut self, id: Id, event: QuicEvent, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match event {
            QuicEvent::ConnectionLost { reason } if !conn.is_over => {
                let reason = conn.reason(&reason);
                self.connection_over(id, Some(reason), now);
            }
            _ if conn.is_over => {}
            QuicEvent::Connected if conn.is_client() => self.settle_early_writes(id),
            QuicEvent::Stream(event) if !conn.is_connected => conn.came_early(event),
            QuicEvent::Stream(event) => self.stream_event(id, event),
            QuicEvent::DatagramReceived if conn.is_connected => self.datagrams_received(id),
            _ => {}
        }
    }

    fn datagrams_received(&mut self, id: Id) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        while let Some(data) = conn.quic.datagrams().recv() {
            self.events.push(Event::Datagram { conn: id, data });
        }
    }

    /// Tell Python of a confirmed handshake. A client's is complete before the server has seen its certificate; only
    /// HANDSHAKE_DONE says that it was accepted (RFC 9001 §4.1.2). At a server, what came with 0-RTT waits for it, too:
    /// only then is the client there, and what came not somebody's replay.
    fn announce(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_connected || conn.is_over || conn.quic.is_handshaking() {
            return;
        }
        if conn.is_client() && conn.quic.stats().frame_rx.handshake_done == 0 {
            return;
        }
        let (identity, resumed) = match (conn.is_client(), conn.peer()) {
            (true, peer) => (None, peer.is_none()),
            (false, Some(Peer::Accepted { who, resumed, .. })) => (Some(who), resumed),
            (false, _) => return self.nobody(id, now),
        };
        conn.is_connected = true;
        // A server has the keys of 0-RTT only where it accepted it.
        let early_data = conn.quic.has_0rtt() && (!conn.is_client() || conn.quic.accepted_0rtt());
        let (early, endpoint) = (std::mem::take(&mut conn.early), conn.endpoint);
        self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, None);
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.handshake_completed(resumed);
        }
        self.events.push(Event::Connected { conn: id, identity, resumed, early_data });
        for event in early {
            self.stream_event(id, event);
        }
        self.datagrams_received(id);
    }

    /// A handshake without an accepted client: a defect here or in rustls, and no connection.
    fn nobody(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let message = "the handshake left no certificate behind";
        conn.quic.close(now, 0u32.into(), Bytes::from_static(message.as_bytes()));
        self.connection_over(id, Some(Reason { kind: "transport", code: 0x1, message: message.to_owned() }), now);
    }

    fn stream_event(&mut self, id: Id, event: StreamEvent) {
        match event {
            StreamEvent::Opened { dir } => self.accept_streams(id, dir),
            StreamEvent::Readable { id: stream } => self.stream_readable(id, stream),
            StreamEvent::Writable { id: stream } => self.stream_writable(id, stream),
            StreamEvent::Finished { id: stream } => self.stream_delivered(id, stream),
            StreamEvent::Stopped { id: stream, error_code } => self.stream_ended(id, stream, error_code),
            StreamEvent::Available { .. } => {}
        }
    }

    /// The end, told once: streams and relays first. `reason` None: Python closed it and knows.
    pub fn connection_over(&mut self, id: Id, reason: Option<Reason>, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.is_over, true) {
            return;
        }
        recovery::closing(&conn.quic);
        let (was_connected, endpoint) = (conn.is_connected, conn.endpoint);
        self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, None);
        let streams = std::mem::take(&mut conn.streams);
        for usage in streams.into_values() {
            match usage {
                Use::Held(_) => {}
                Use::Relay(relay) => self.relay_lost(relay),
                Use::Newcomer(newcomer) => self.newcomer_gone(newcomer),
                Use::Asking(asking) => self.asking_failed(asking, Outcome::Lost),
            }
        }
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.connection_over(was_connected, now);
        }
        if let Some(reason) = reason {
            self.events.push(Event::Closed { conn: id, reason });
        }
        self.mark(id);
    }

    /// CONNECTION_CLOSE; nothing is heard of it any more.
    pub fn close_connection(&mut self, id: Id, code: u64, reason: &[u8], now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
        conn.quic.close(now, code, Bytes::copy_from_slice(reason));
        self.connection_over(id, None, now);
        self.transmit_connection(id, now);
    }

    /// Gone at once, without a word to the peer.
    pub fn fail_connection(&mut self, id: Id, reason: Reason, now: Instant) {
        self.connection_over(id, Some(reason), now);
        self.forget_connection(id);
    }

    /// Nothing is left of it; a client's endpoint and socket go, too.
    pub fn forget_connection(&mut self, id: Id) {
        let Some(mut conn) = self.conns.remove(id) else { return };
        self.timers.set(Timer::Quic(id), &mut conn.quic_at, None);
        self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, None);
        if conn.is_client() {
            self.remove_endpoint(conn.endpoint);
        } else if let Some(endpoint) = self.endpoints.get_mut(conn.endpoint) {
            endpoint.forget(conn.handle);
        }
    }

    pub fn handshake_timed_out(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.handshake_at = None;
        let message = "the handshake was not completed in time".to_owned();
        self.fail_connection(id, Reason { kind: "timeout", code: 0, message }, now);
    }
}
