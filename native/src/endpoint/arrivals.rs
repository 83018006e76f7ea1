//! Received datagrams: to their connection, to a new one, or answered without one.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::BytesMut;
use quinn_proto::{DatagramEvent, EcnCodepoint, Incoming, Transmit};
use quinn_udp::RecvMeta;

use super::Endpoint;
use crate::arena::Id;
use crate::cid;
use crate::connection::Conn;
use crate::engine::Engine;
use crate::events::Event;
use crate::timers::Timer;
use crate::udp::{is_own, Sent};

/// Even validated addresses may have at most this many times `retry_threshold` handshakes half open.
const HALF_OPEN_CAP_FACTOR: usize = 10;

/// Enough of a datagram for both connection IDs.
const HEAD_BYTES: usize = 64;

/// What to do with an Initial of an unknown connection.
enum Verdict {
    Accept,
    Retry,
    Refuse,
    Ignore,
}

impl Engine {
    /// Receive on one socket, a bounded number of batches; how many bytes.
    pub fn receive(&mut self, port_id: Id, batches: usize, now: Instant) -> usize {
        let Some(mut buffers) = self.buffers.take() else { return 0 };
        let mut received = 0;
        for _ in 0..batches {
            let Some(port) = self.ports.get_mut(port_id) else { break };
            let endpoint = port.endpoint;
            match port.receive(&mut buffers) {
                Ok(count) => {
                    for index in 0..count {
                        let (meta, datagrams) = buffers.received(index);
                        received += meta.len;
                        if !is_own(meta.dst_ip) {
                            continue;
                        }
                        for data in datagrams {
                            self.datagram(port_id, endpoint, &meta, data, now);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(port) = self.ports.get_mut(port_id) {
                        port.readable = false;
                    }
                }
                Err(error) => self.network_failed(endpoint, &error, now),
            }
            if self.ports.get(port_id).is_none_or(|port| !port.readable) {
                break;
            }
        }
        self.buffers = Some(buffers);
        received
    }

    /// One datagram, from any address.
    pub fn datagram(&mut self, port: Id, endpoint_id: Id, meta: &RecvMeta, data: BytesMut, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(endpoint_id) else { return };
        endpoint.stats.datagrams_received += 1;
        let mut head = [0; HEAD_BYTES];
        let head_bytes = data.len().min(HEAD_BYTES);
        head[..head_bytes].copy_from_slice(&data[..head_bytes]);
        let head = &head[..head_bytes];
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        let unmatched = endpoint.ids.unknown.load(Relaxed) + endpoint.ids.foreign.load(Relaxed);
        self.answer.clear();
        match endpoint.quic.handle(now, meta.addr, meta.dst_ip, ecn, data, &mut self.answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(&id) = endpoint.conns.get(&handle.0) else { return };
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.receive_through(port, event, now);
                    self.mark(id);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.incoming(port, endpoint_id, head, incoming, now),
            Some(DatagramEvent::Response(transmit)) => {
                let resets = endpoint.ids.unknown.load(Relaxed) + endpoint.ids.foreign.load(Relaxed) != unmatched;
                endpoint.stats.stateless_resets_sent += u64::from(resets);
                self.send_answer(port, endpoint_id, &transmit);
            }
            None if endpoint.ids.unknown.load(Relaxed) + endpoint.ids.foreign.load(Relaxed) != unmatched => {}
            None => endpoint.dropped(head),
        }
    }

    fn incoming(&mut self, port: Id, endpoint_id: Id, head: &[u8], incoming: Incoming, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(endpoint_id) else { return };
        let verdict = endpoint.verdict(head, &incoming, now);
        match verdict {
            Verdict::Accept => self.accept(port, endpoint_id, incoming, now),
            Verdict::Ignore => endpoint.quic.ignore(incoming),
            Verdict::Refuse => {
                let transmit = endpoint.quic.refuse(incoming, &mut self.answer);
                self.send_answer(port, endpoint_id, &transmit);
            }
            Verdict::Retry => {
                endpoint.ids.for_retry(true);
                let answer = endpoint.quic.retry(incoming, &mut self.answer);
                endpoint.ids.for_retry(false);
                match answer {
                    Ok(transmit) => {
                        endpoint.stats.retries_sent += 1;
                        self.send_answer(port, endpoint_id, &transmit);
                    }
                    Err(error) => endpoint.quic.ignore(error.into_incoming()),
                }
            }
        }
    }

    fn accept(&mut self, port: Id, endpoint_id: Id, incoming: Incoming, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(endpoint_id) else { return };
        let Some(server) = &mut endpoint.server else { return endpoint.quic.ignore(incoming) };
        let peer = incoming.remote_address();
        let payload = self.ports.get(port).and_then(|port| port.payload_towards(peer));
        let config = server.config_for(payload);
        let timeout = server.policy.limits.handshake_timeout;
        match endpoint.quic.accept(incoming, now, &mut self.answer, Some(config)) {
            Ok((handle, mut quic)) => {
                // The initial MAX_DATA is all until `raise_limits`: what Python reads gives no credit back.
                quic.set_receive_window(0u32.into());
                let id = self.conns.insert(Conn::new(quic, handle, endpoint_id, port, None, now));
                endpoint.added(handle, id);
                self.events.push(Event::Accepted { endpoint: endpoint_id, conn: id, peer });
                self.started(id, now + timeout);
            }
            Err(error) => {
                endpoint.handshake_failed(now);
                if let Some(transmit) = error.response {
                    self.send_answer(port, endpoint_id, &transmit);
                }
            }
        }
    }

    pub(super) fn started(&mut self, id: Id, handshake_at: Instant) {
        if let Some(conn) = self.conns.get_mut(id) {
            self.timers.set(Timer::Handshake(id), &mut conn.handshake_at, Some(handshake_at));
        }
        self.mark(id);
    }

    fn send_answer(&mut self, port: Id, endpoint: Id, transmit: &Transmit) {
        let (Some(port), Some(endpoint)) = (self.ports.get_mut(port), self.endpoints.get_mut(endpoint)) else { return };
        // Lost where the kernel does not take it: the peer sends again.
        match port.send(transmit, &self.answer) {
            Sent::Done => endpoint.stats.datagrams_sent += 1,
            Sent::Blocked | Sent::Failed(_) => endpoint.stats.send_blocked += 1,
        }
    }
}

impl Endpoint {
    fn verdict(&mut self, head: &[u8], incoming: &Incoming, now: Instant) -> Verdict {
        let Some(server) = &mut self.server else { return Verdict::Ignore };
        if !cid::destination(head).is_some_and(cid::has_initial_form) {
            match cid::destination(head).is_some_and(|id| self.ids.is_foreign(id)) {
                true => drop(self.ids.foreign.fetch_add(1, Relaxed)),
                false => self.stats.unknown_connection += 1,
            }
            return Verdict::Ignore;
        }
        let policy = &server.policy;
        if server.refuse || self.open >= policy.max_connections {
            self.stats.initials_refused += 1;
            return Verdict::Refuse;
        }
        let (threshold, cap) = (policy.retry_threshold, policy.retry_threshold.max(1) * HALF_OPEN_CAP_FACTOR);
        if !incoming.remote_address_validated() && server.load(self.half_open, now) >= threshold {
            return match incoming.may_retry() {
                true => Verdict::Retry,
                false => Verdict::Ignore,
            };
        }
        if self.half_open >= cap {
            self.stats.initials_refused += 1;
            return Verdict::Ignore;
        }
        Verdict::Accept
    }
}
