//! One QUIC connection: its limits, its events, its statistics, and its close reason.

mod engine;

use std::sync::Arc;
use std::time::Instant;

use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, Dir, FrameStats, Side, StreamEvent, StreamId, TransportErrorCode,
    VarInt,
};
use rustc_hash::FxHashMap;

use crate::arena::Id;
use crate::cid;
use crate::dial::Serving;
use crate::events::Reason;
use crate::recovery;
use crate::stream::Use;
use crate::tickets::ClientTickets;
use crate::transport::{send_window, SEND_WINDOW_BYTES, UNLIMITED};
use crate::verifier::Peer;

/// RFC 9000 §20.1: 0x100 and a TLS alert.
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

/// The alerts about a certificate (RFC 8446 §6): sent by us, they are about the peer's.
const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x100 + 42..=0x100 + 48;
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;

/// Ack-eliciting frames (RFC 9002 §2).
fn ack_eliciting_frames(f: &FrameStats) -> u64 {
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
    /// The socket that received the peer's newest packet.
    pub port: Id,
    pub streams: FxHashMap<StreamId, Use>,
    /// User connections that the engine serves here without Python.
    pub users: u64,
    /// User connections that Python serves here, and how many there may be in all.
    pub others: u64,
    pub max_users: u64,
    /// How requests for user connections are served, once it is registered.
    pub serving: Option<Serving>,
    /// In the queue of those that may have something to send.
    pub dirty: bool,
    /// It is in `Port::waiting`. What it receives is handled meanwhile.
    pub waits_for_port: bool,
    pub quic_at: Option<Instant>,
    pub handshake_at: Option<Instant>,
    /// At a client: when the next PING is sent if the handshake makes no progress.
    pub ping_at: Option<Instant>,
    /// Python knows that it is connected.
    pub is_connected: bool,
    /// Python knows that it is closed.
    pub is_closed: bool,
    /// Events of streams from before `Connected` was reported, each once.
    early: Vec<StreamEvent>,
    /// A client's tickets; None at a server.
    tickets: Option<Arc<ClientTickets>>,
    /// The two steering bytes of the peer's ID in use.
    pub peer_prefix: Option<u16>,
    frames_received: u64,
    pub last_received_at: Instant,
    ack_eliciting_sent: u64,
    ack_eliciting_sent_at: Option<Instant>,
    send_window: u64,
    /// Of the peer's streams: how many may be open, and how many were open when MAX_STREAMS was last considered.
    max_streams: u64,
    open_streams: u64,
}

impl Conn {
    pub fn new(
        quic: Connection,
        handle: ConnectionHandle,
        endpoint: Id,
        port: Id,
        tickets: Option<Arc<ClientTickets>>,
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
            max_users: u64::MAX,
            serving: None,
            dirty: false,
            waits_for_port: false,
            quic_at: None,
            handshake_at: None,
            ping_at: None,
            is_connected: false,
            is_closed: false,
            early: Vec::new(),
            tickets,
            peer_prefix: None,
            frames_received: 0,
            last_received_at: now,
            ack_eliciting_sent: 0,
            ack_eliciting_sent_at: None,
            send_window: SEND_WINDOW_BYTES,
            max_streams,
            open_streams: 0,
        }
    }

    pub fn is_client(&self) -> bool {
        self.quic.side() == Side::Client
    }

    /// A packet of this connection, from any address.
    fn receive(&mut self, event: quinn_proto::ConnectionEvent, now: Instant) {
        let peer = self.quic.remote_address();
        self.quic.handle_event(event);
        if self.quic.remote_address() != peer {
            // quinn takes another port for the same path, and sends its PATH_CHALLENGE in a datagram of the size that
            // was found there. Where it is another path after all, and a smaller one, that never arrives, and what
            // would do goes to the old address until the connection is idle.
            self.quic.path_changed(now);
        }
    }

    /// A datagram came through `port`. Answers go there only if a packet in it was authentic.
    pub fn receive_through(&mut self, port: Id, event: quinn_proto::ConnectionEvent, now: Instant) {
        let before = (port != self.port).then(|| self.frames());
        self.receive(event, now);
        if before.is_some_and(|before| before != self.frames()) {
            self.port = port;
        }
    }

    /// Frames received: counted only where a packet was authentic.
    fn frames(&self) -> u64 {
        let frames = self.quic.stats().frame_rx;
        frames.acks + ack_eliciting_frames(&frames)
    }

    /// Note when the peer was last heard.
    pub fn packets_received(&mut self, now: Instant) {
        let frames = self.frames();
        if frames != self.frames_received {
            self.frames_received = frames;
            self.last_received_at = now;
        }
    }

    /// Note what was sent: `data` is the newest packet, for its destination ID.
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
        // The loss of a probe of a larger size says nothing about the peer.
        let sent = ack_eliciting_frames(&stats.frame_tx).saturating_sub(stats.path.sent_plpmtud_probes);
        if sent != self.ack_eliciting_sent {
            self.ack_eliciting_sent = sent;
            self.ack_eliciting_sent_at = Some(now);
        }
    }

    /// Whether the newest ack-eliciting packet is not acknowledged yet.
    pub fn is_outstanding(&self) -> bool {
        self.ack_eliciting_sent_at > recovery::seen(&self.quic).acked_sent_at
    }

    pub fn raise_limits(&mut self, max_streams: u32) {
        self.max_streams = max_streams.into();
        self.quic.set_max_concurrent_streams(Dir::Bi, max_streams.into());
        self.quic.set_receive_window(UNLIMITED);
    }

    /// quinn sends MAX_STREAMS for closed streams only once they are an eighth of all. Where few are left that is too
    /// late: the peer may be waiting for the next one.
    pub fn announce_stream_credit(&mut self) {
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

    /// At a client, before it is connected: whether what it writes is sent with the first packets (0-RTT).
    pub fn may_write_early(&self) -> bool {
        self.is_client() && self.quic.has_0rtt() && self.quic.is_handshaking() && !self.is_closed
    }

    fn queue_early(&mut self, event: StreamEvent) {
        if !self.early.contains(&event) {
            self.early.push(event);
        }
    }

    fn peer(&self) -> Option<Peer> {
        let peer = self.quic.crypto_session().peer_identity()?;
        peer.downcast::<Peer>().ok().map(|peer| *peer)
    }

    /// The reason in the terms of `qmux.quic.engine.CloseReason`.
    fn reason(&self, error: &ConnectionError) -> Reason {
        let reason = |kind, code, message: &str| Reason { kind, code, message: message.to_owned() };
        match error {
            ConnectionError::ApplicationClosed(close) => {
                reason("application", close.error_code.into(), &String::from_utf8_lossy(&close.reason))
            }
            ConnectionError::ConnectionClosed(close) => {
                let message = String::from_utf8_lossy(&close.reason);
                match close.error_code {
                    // What an application's close looks like before the handshake is complete (RFC 9000 §10.2.3).
                    TransportErrorCode::APPLICATION_ERROR if message.is_empty() => {
                        reason("application", 0, "closed before the handshake was complete")
                    }
                    TransportErrorCode::APPLICATION_ERROR => reason("application", 0, &message),
                    code => transport_reason(code, &message),
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
