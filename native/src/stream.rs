//! A stream before its relay: what QMux itself reads and writes at its head.

use std::collections::VecDeque;

use bytes::Bytes;
use quinn_proto::{ReadError, ReadableError, StreamId, VarInt, WriteError};

use crate::arena::Id;
use crate::connection::Conn;
use crate::engine::Engine;
use crate::events::{Event, Outcome};

/// What a stream is used for.
pub enum Use {
    Held(Held),
    Relay(Id),
    /// A request for a user connection, at a client.
    Request(Id),
    /// A user connection that waits for its answer, at a server.
    Attempt(Id),
}

/// A stream that Python reads and writes.
#[derive(Default)]
pub struct Held {
    /// Written, and not yet taken by quinn: the peer's window or ours is full.
    pub pending: VecDeque<Bytes>,
    pub finishing: bool,
    pub finished: bool,
    pub read_ended: bool,
    /// Read from the stream before, and to be read again.
    pub pushback: Bytes,
    wants_read: bool,
    wants_write: bool,
    priority: i32,
    /// Written before the handshake was complete: where the server takes no 0-RTT, quinn forgets it.
    early: Vec<Bytes>,
}

impl Held {
    /// `data` is sent first.
    pub fn writing(data: Bytes) -> Self {
        Self { pending: [data].into(), ..Self::default() }
    }

    /// As if `pushback` had not been read yet; `read_ended`: FIN is behind it.
    pub fn unread(pushback: Bytes, read_ended: bool) -> Self {
        Self { pushback, read_ended, ..Self::default() }
    }

    pub fn pending_bytes(&self) -> usize {
        self.pending.iter().map(Bytes::len).sum()
    }
}

/// The result of a read.
pub enum Read {
    Data(Vec<u8>),
    End,
    Wait,
}

pub fn stream_id(number: u64) -> StreamId {
    StreamId::from(VarInt::from_u64(number).unwrap_or(VarInt::MAX))
}

/// RESET_STREAM and STOP_SENDING; neither where that direction is closed already.
pub fn abort_both(conn: &mut Conn, stream: StreamId, code: VarInt) {
    // Err: that half has ended, and there is nothing left to abort.
    let _ = conn.quic.send_stream(stream).reset(code);
    let _ = conn.quic.recv_stream(stream).stop(code);
}

/// Open the very stream `wanted`. One below it that was aborted meanwhile is aborted again.
fn reopen(conn: &mut Conn, wanted: StreamId) -> bool {
    while let Some(stream) = conn.quic.streams().open(wanted.dir()) {
        if stream == wanted {
            return true;
        }
        abort_both(conn, stream, VarInt::from_u32(0));
    }
    false // fewer are allowed now
}

impl Engine {
    fn held(&mut self, id: Id, stream: StreamId) -> Option<(&mut Conn, Held)> {
        let conn = self.conns.get_mut(id)?;
        match conn.streams.remove(&stream)? {
            Use::Held(held) => Some((conn, held)),
            relay => {
                conn.streams.insert(stream, relay);
                None
            }
        }
    }

    /// Keep `held`, unless both directions are closed: quinn needs no more of us.
    fn put_back(&mut self, id: Id, stream: StreamId, held: Held) {
        if held.read_ended && held.pushback.is_empty() && held.finished {
            return;
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.streams.insert(stream, Use::Held(held));
        }
    }

    /// At most `limit` bytes, in order.
    pub fn read_stream(&mut self, id: Id, stream: StreamId, limit: usize) -> Read {
        let Some((conn, mut held)) = self.held(id, stream) else { return Read::Wait };
        let mut data = held.pushback.split_to(limit.min(held.pushback.len())).to_vec();
        let mut reset = None;
        match conn.quic.recv_stream(stream).read(true) {
            _ if held.read_ended => {}
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => held.read_ended = true,
            Ok(mut chunks) => {
                while data.len() < limit {
                    match chunks.next(limit - data.len()) {
                        Ok(Some(chunk)) => data.extend_from_slice(&chunk.bytes),
                        Ok(None) => {
                            held.read_ended = true;
                            break;
                        }
                        Err(ReadError::Blocked) => break,
                        Err(ReadError::Reset(code)) => {
                            reset = Some(code);
                            break;
                        }
                    }
                }
                let _ = chunks.finalize(); // marked below in any case
            }
        }
        let ended = held.read_ended && held.pushback.is_empty();
        held.wants_read = data.is_empty() && !ended;
        self.put_back(id, stream, held);
        self.mark(id);
        if let Some(code) = reset {
            self.stream_ended(id, stream, code);
        }
        match (data.is_empty(), ended) {
            (false, _) => Read::Data(data),
            (true, true) => Read::End,
            (true, false) => Read::Wait,
        }
    }

    /// Queue `data`, and FIN behind it; how much is still waiting for room.
    pub fn write_stream(&mut self, id: Id, stream: StreamId, data: &[u8], finish: bool) -> usize {
        let Some((conn, mut held)) = self.held(id, stream) else { return 0 };
        if !data.is_empty() {
            let data = Bytes::copy_from_slice(data);
            if conn.quic.is_handshaking() {
                held.early.push(data.clone());
            }
            held.pending.push_back(data);
        }
        held.finishing |= finish;
        self.flush_held(id, stream, held)
    }

    fn flush_held(&mut self, id: Id, stream: StreamId, mut held: Held) -> usize {
        let Some(conn) = self.conns.get_mut(id) else { return 0 };
        let mut send = conn.quic.send_stream(stream);
        let mut stopped = None;
        while !held.pending.is_empty() {
            match send.write_chunks(held.pending.make_contiguous()) {
                Ok(written) => drop(held.pending.drain(..written.chunks)),
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(code)) => {
                    stopped = Some(code);
                    break;
                }
                Err(WriteError::ClosedStream) => held.pending.clear(),
            }
        }
        if held.finishing && !held.finished && held.pending.is_empty() {
            held.finished = true;
            let _ = send.finish(); // Err: the peer stopped it, which an event reports
        }
        let waiting = held.pending_bytes();
        if waiting == 0 && std::mem::take(&mut held.wants_write) {
            self.events.push(Event::Writable { conn: id, stream: stream.into() });
        }
        held.wants_write = waiting > 0;
        self.put_back(id, stream, held);
        self.mark(id);
        if let Some(code) = stopped {
            self.stream_ended(id, stream, code);
        }
        waiting
    }

    /// Higher is sent first.
    pub fn set_priority(&mut self, id: Id, stream: StreamId, priority: i32) {
        let Some((conn, mut held)) = self.held(id, stream) else { return };
        held.priority = priority;
        let _ = conn.quic.send_stream(stream).set_priority(priority); // Err: it has ended
        self.put_back(id, stream, held);
    }

    /// The handshake is complete: what a client wrote before arrived, or quinn took its streams back together with what
    /// was written to them, and they are opened again, and it is written again.
    pub fn settle_early_writes(&mut self, id: Id) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let is_lost = conn.quic.has_0rtt() && !conn.quic.accepted_0rtt();
        let ours = conn.streams.keys().copied().filter(|stream| stream.initiator() == conn.quic.side());
        let mut streams: Vec<StreamId> = ours.collect();
        streams.sort_unstable();
        for stream in streams {
            let Some((conn, mut held)) = self.held(id, stream) else { continue };
            let early = std::mem::take(&mut held.early);
            if !is_lost {
                self.put_back(id, stream, held);
            } else if reopen(conn, stream) {
                let _ = conn.quic.send_stream(stream).set_priority(held.priority); // Err: not of a new stream
                held.pending = early.into();
                held.finished = false;
                self.flush_held(id, stream, held);
            } else {
                self.events.push(Event::StreamEnded { conn: id, stream: stream.into(), code: 0 });
            }
        }
    }

    /// RESET_STREAM and STOP_SENDING, and no more events of it.
    pub fn abort_stream(&mut self, id: Id, stream: StreamId, code: VarInt) {
        if let Some((conn, _)) = self.held(id, stream) {
            abort_both(conn, stream, code);
            self.mark(id);
        }
    }

    pub fn stream_readable(&mut self, id: Id, stream: StreamId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.streams.get_mut(&stream) {
            None => {}
            Some(usage) => {
                if let Ok(Some(code)) = conn.quic.recv_stream(stream).received_reset() {
                    self.stream_ended(id, stream, code);
                    return;
                }
                match usage {
                    Use::Relay(relay) => {
                        let relay = *relay;
                        self.relay_readable(relay);
                    }
                    Use::Request(request) => {
                        let request = *request;
                        self.request_readable(request);
                    }
                    Use::Attempt(attempt) => {
                        let attempt = *attempt;
                        self.attempt_readable(attempt);
                    }
                    Use::Held(held) => {
                        if std::mem::take(&mut held.wants_read) {
                            self.events.push(Event::Readable { conn: id, stream: stream.into() });
                        }
                    }
                }
            }
        }
    }

    pub fn stream_writable(&mut self, id: Id, stream: StreamId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.streams.get(&stream) {
            Some(&Use::Relay(relay)) => self.relay_writable(relay),
            Some(&Use::Attempt(attempt)) => self.attempt_writable(attempt),
            _ => {
                if let Some((_, held)) = self.held(id, stream) {
                    self.flush_held(id, stream, held);
                }
            }
        }
    }

    /// Everything up to FIN was acknowledged.
    pub fn stream_delivered(&mut self, id: Id, stream: StreamId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Some(&Use::Relay(relay)) = conn.streams.get(&stream) {
            self.relay_delivered(relay);
        }
    }

    /// The peer ended one direction abruptly: with QMux one always goes with the other, so this end closes both, too.
    pub fn stream_ended(&mut self, id: Id, stream: StreamId, code: VarInt) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.streams.get(&stream) {
            None => {}
            Some(&Use::Relay(relay)) => self.relay_stream_reset(relay),
            Some(&Use::Request(request)) => {
                conn.streams.remove(&stream);
                abort_both(conn, stream, code);
                self.mark(id);
                self.drop_request(request);
            }
            Some(&Use::Attempt(attempt)) => {
                conn.streams.remove(&stream);
                abort_both(conn, stream, code);
                self.mark(id);
                self.attempt_failed(attempt, Outcome::Reset(code.into()));
            }
            Some(Use::Held(_)) => {
                conn.streams.remove(&stream);
                abort_both(conn, stream, code);
                self.mark(id);
                self.events.push(Event::StreamEnded { conn: id, stream: stream.into(), code: code.into() });
            }
        }
    }
}
