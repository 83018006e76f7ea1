//! The connections of an engine: events from quinn, and closing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{Event as QuicEvent, StreamEvent, VarInt};

use crate::arena::Id;
use crate::engine::Engine;
use crate::events::{Event, Outcome, Reason};
use crate::recovery;
use crate::stream::Use;
use crate::timers::Timer;
use crate::verifier::Peer;

/// A client whose handshake takes longer sends a PING, and one more each time this has passed.
const HANDSHAKE_PING: Duration = Duration::from_secs(1);

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

    /// Handle all events that quinn has for one connection.
    pub fn connection_events(&mut self, id: Id, now: Instant) {
        loop {
            let Some(conn) = self.conns.get_mut(id) else { return };
            let endpoint = self.endpoints.get_mut(conn.endpoint);
            if let Some(endpoint) = endpoint {
                while let Some(event) = conn.quic.poll_endpoint_events() {
                    // Left to `forget_connection`: quinn reuses the handle at once, and ours would name two.
                    if event.is_drained() {
                        continue;
                    }
                    if let Some(answer) = endpoint.quic.handle_event(conn.handle, event) {
                        conn.quic.handle_event(answer);
                    }
                }
            }
            let Some(event) = conn.quic.poll() else { break };
            self.connection_event(id, event, now);
        }
        if let Some(ticket) =
            self.conns.get(id).and_then(|conn| conn.tickets.as_ref()).and_then(|tickets| tickets.newest())
        {
            self.events.push(Event::Ticket { conn: id, ticket });
        }
        self.report_connected(id, now);
    }

    fn connection_event(&mut self, id: Id, event: QuicEvent, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match event {
            QuicEvent::ConnectionLost { reason } if !conn.is_closed => {
                let reason = conn.reason(&reason);
                self.connection_closed(id, Some(reason), now);
            }
            _ if conn.is_closed => {}
            QuicEvent::Connected if conn.is_client() => {
                recovery::open_window(&conn.quic);
                self.settle_early_writes(id);
            }
            QuicEvent::Stream(event) if !conn.is_connected => conn.queue_early(event),
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

    /// Report a confirmed handshake to Python. A client's is complete before the server has seen its certificate; only
    /// HANDSHAKE_DONE says that it was accepted (RFC 9001 §4.1.2). At a server, 0-RTT data waits for it, too: only then
    /// is it known not to be a replay.
    fn report_connected(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_connected || conn.is_closed || conn.quic.is_handshaking() {
            return;
        }
        if conn.is_client() && conn.quic.stats().frame_rx.handshake_done == 0 {
            return;
        }
        let (identity, resumed) = match (conn.is_client(), conn.peer()) {
            (true, peer) => (None, peer.is_none()),
            (false, Some(Peer::Accepted { identity, resumed, .. })) => (Some(identity), resumed),
            (false, _) => return self.close_unidentified(id, now),
        };
        conn.is_connected = true;
        recovery::limit_window(&conn.quic);
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
    fn close_unidentified(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let message = "the handshake left no certificate behind";
        conn.quic.close(now, 0u32.into(), Bytes::from_static(message.as_bytes()));
        self.connection_closed(id, Some(Reason { kind: "transport", code: 0x1, message: message.to_owned() }), now);
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

    /// Report the close once: streams and relays first. `reason` None: Python closed it.
    pub fn connection_closed(&mut self, id: Id, reason: Option<Reason>, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.is_closed, true) {
            return;
        }
        recovery::open_window(&conn.quic);
        let (was_connected, endpoint) = (conn.is_connected, conn.endpoint);
        self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, None);
        let streams = std::mem::take(&mut conn.streams);
        for usage in streams.into_values() {
            match usage {
                Use::Held(_) => {}
                Use::Relay(relay) => self.relay_lost(relay),
                Use::Request(request) => self.drop_request(request),
                Use::Attempt(attempt) => self.attempt_failed(attempt, Outcome::Lost),
            }
        }
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.connection_closed(was_connected, now);
        }
        if let Some(reason) = reason {
            self.events.push(Event::Closed { conn: id, reason });
        }
        self.mark(id);
    }

    /// CONNECTION_CLOSE; no event of this connection follows.
    pub fn close_connection(&mut self, id: Id, code: u64, reason: &[u8], now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
        conn.quic.close(now, code, Bytes::copy_from_slice(reason));
        self.connection_closed(id, None, now);
        self.transmit_connection(id, now);
    }

    /// Close it at once, without CONNECTION_CLOSE.
    pub fn fail_connection(&mut self, id: Id, reason: Reason, now: Instant) {
        self.connection_closed(id, Some(reason), now);
        self.forget_connection(id);
    }

    /// Remove all state of it, at a client also its endpoint and socket.
    pub fn forget_connection(&mut self, id: Id) {
        let Some(mut conn) = self.conns.remove(id) else { return };
        self.timers.set(Timer::Quic(id), &mut conn.quic_at, None);
        self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, None);
        self.timers.set(Timer::Ping(id), &mut conn.ping_at, None);
        if conn.is_client() {
            self.remove_endpoint(conn.endpoint);
        } else if let Some(endpoint) = self.endpoints.get_mut(conn.endpoint) {
            endpoint.forget(conn.handle);
        }
    }

    /// A client's next PING while the handshake lasts.
    pub fn arm_ping(&mut self, id: Id, now: Instant) {
        if let Some(conn) = self.conns.get_mut(id) {
            self.timers.set(Timer::Ping(id), &mut conn.ping_at, Some(now + HANDSHAKE_PING));
        }
    }

    /// quinn has no timer while nothing but 0-RTT is in flight, and a server may not be allowed to send more before it
    /// receives another packet (RFC 9000 §8.1).
    pub fn ping_handshake(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.ping_at = None;
        if conn.quic.is_handshaking() && !conn.is_closed {
            recovery::open_window(&conn.quic); // 0-RTT may have filled it
            conn.quic.ping();
            self.mark(id);
            self.arm_ping(id, now);
        }
    }

    pub fn handshake_timed_out(&mut self, id: Id, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.handshake_at = None;
        let message = "the handshake was not completed in time".to_owned();
        self.fail_connection(id, Reason { kind: "timeout", code: 0, message }, now);
    }
}
