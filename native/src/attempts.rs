//! User connections that wait for a client's answer: requested with a stream, relayed as soon as the service is
//! connected.
//!
//! Only the quick and usual answer is handled here. After a refusal, a reset or a lost connection the user connection
//! is handed off to Python, and so is a slow attempt: it goes on there, with the clock of `qmux.protocol.attempt`.
//! Nothing is tried twice.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ReadError, StreamId, VarInt};

use crate::arena::Id;
use crate::connection::Conn;
use crate::counts::RelayedUser;
use crate::engine::Engine;
use crate::events::{Event, Outcome};
use crate::frames::{self, Answer, Parsed};
use crate::listener::{UserConn, UserSocket};
use crate::recovery;
use crate::sockets;
use crate::stream::{abort_both, Held, Use};
use crate::timers::Timer;

/// How often a pending attempt is checked. It is slow when it is older than `Frontend::slow_after` and than the
/// connection's probe timeout: until then even Python would only wait.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

// `qmux.protocol.frames.AppCode`
const NONE: u32 = 0x00;
const CANCELLED: u32 = 0x11;

/// A request to one client for one user connection.
pub struct Attempt {
    service: Id,
    socket: OwnedFd,
    user: UserConn,
    conn: Id,
    stream: StreamId,
    started: Instant,
    /// The part of the request that quinn did not take yet.
    unsent: Bytes,
    /// What was received of the answer.
    answer: Vec<u8>,
    is_queued: bool,
}

/// How far an answer was received.
enum Received {
    Incomplete,
    Ready,
    Refused { code: String, reason: String },
    Unusual { read_ended: bool },
    Reset(VarInt),
}

impl Attempt {
    pub fn new(service: Id, socket: OwnedFd, user: UserConn, conn: Id, stream: StreamId, now: Instant) -> Self {
        let (unsent, answer, is_queued) = (Bytes::new(), Vec::new(), false);
        Self { service, socket, user, conn, stream, started: now, unsent, answer, is_queued }
    }

    fn flush(&mut self, conn: &mut Conn) {
        while !self.unsent.is_empty() {
            let sent = conn.quic.send_stream(self.stream).write_chunks(std::slice::from_mut(&mut self.unsent));
            if sent.is_err() {
                return; // no room yet, or the peer ended the stream, which an event reports
            }
        }
    }

    /// Continue to read; never beyond the answer.
    fn read(&mut self, conn: &mut Conn) -> Received {
        let mut receive = conn.quic.recv_stream(self.stream);
        let Ok(mut chunks) = receive.read(true) else { return Received::Unusual { read_ended: true } };
        let heard = loop {
            let wanted = match frames::answer(&self.answer) {
                Parsed::Wants(wanted) => wanted,
                Parsed::Whole(Answer::Ready) => break Received::Ready,
                Parsed::Whole(Answer::Refused { code, reason }) => {
                    break Received::Refused { code: code.to_owned(), reason: reason.to_owned() };
                }
                Parsed::Unusual => break Received::Unusual { read_ended: false },
            };
            match chunks.next(wanted) {
                Ok(Some(chunk)) => self.answer.extend_from_slice(&chunk.bytes),
                Ok(None) => break Received::Unusual { read_ended: true },
                Err(ReadError::Blocked) => break Received::Incomplete,
                Err(ReadError::Reset(code)) => break Received::Reset(code),
            }
        };
        let _ = chunks.finalize(); // the caller marks the connection in any case
        heard
    }
}

/// Whether the other end reset the connection; the check does not clear the error. A FIN is no such sign: the other end
/// may have sent everything and still wait for the answer.
fn is_reset(fd: RawFd) -> bool {
    sockets::polled(fd, 0) & libc::POLLERR != 0
}

impl Engine {
    /// Send the request and wait for the answer.
    pub fn start_attempt(&mut self, mut attempt: Attempt, head: Vec<u8>) {
        let (conn_id, stream, now) = (attempt.conn, attempt.stream, attempt.started);
        attempt.unsent = head.into();
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        attempt.flush(conn);
        self.counts.waiting(attempt.service, 1);
        let id = self.frontend.attempts.insert(attempt);
        conn.streams.insert(stream, Use::Attempt(id));
        self.users_changed(conn_id, 1);
        self.mark(conn_id);
        self.frontend.checks.push_back((now + CHECK_INTERVAL, id));
        self.arm_checks();
    }

    pub fn attempt_writable(&mut self, id: Id) {
        let Some(attempt) = self.frontend.attempts.get_mut(id) else { return };
        let Some(conn) = self.conns.get_mut(attempt.conn) else { return };
        attempt.flush(conn);
        let conn = attempt.conn;
        self.mark(conn);
    }

    /// There may be more of the answer.
    pub fn attempt_readable(&mut self, id: Id) {
        if let Some(attempt) = self.frontend.attempts.get_mut(id) {
            if !std::mem::replace(&mut attempt.is_queued, true) {
                self.frontend.answers_ready.push_back(id);
            }
        }
    }

    /// Read every answer that may have arrived.
    pub fn read_answers(&mut self, now: Instant) {
        while let Some(id) = self.frontend.answers_ready.pop_front() {
            self.read_answer(id, now);
        }
    }

    fn read_answer(&mut self, id: Id, now: Instant) {
        let Some(attempt) = self.frontend.attempts.get_mut(id) else { return };
        attempt.is_queued = false;
        let (conn_id, stream) = (attempt.conn, attempt.stream);
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let heard = attempt.read(conn);
        if matches!(heard, Received::Refused { .. }) {
            conn.streams.remove(&stream);
            abort_both(conn, stream, NONE.into());
        }
        self.mark(conn_id);
        match heard {
            Received::Incomplete => {}
            Received::Ready => self.attempt_ready(id, now),
            Received::Refused { code, reason } => {
                self.attempt_failed(id, Outcome::Refused { code, reason });
            }
            Received::Unusual { read_ended } => self.hand_off_attempt(id, read_ended),
            Received::Reset(code) => self.stream_ended(conn_id, stream, code),
        }
    }

    /// The client has connected to the service: relay.
    fn attempt_ready(&mut self, id: Id, now: Instant) {
        let Some(attempt) = self.frontend.attempts.remove(id) else { return };
        self.counts.waiting(attempt.service, -1);
        let Attempt { service, socket, user, conn: conn_id, stream, unsent, .. } = attempt;
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let held = if unsent.is_empty() { Held::default() } else { Held::writing(unsent) };
        conn.streams.insert(stream, Use::Held(held));
        let user = RelayedUser { tally: service, conn_id: user.conn_id, source: user.source };
        let timeouts = self.frontend.timeouts(service);
        // Err: epoll did not take it, and the relay has ended with an error of the socket.
        let _ = self.start_relay(conn_id, stream, socket, timeouts, Some(user), now);
    }

    /// The stream was ended by the client, or its connection is lost: Python tries another client.
    pub fn attempt_failed(&mut self, id: Id, outcome: Outcome) {
        if let Some(attempt) = self.remove_attempt(id) {
            self.report_attempt(attempt, outcome);
        }
    }

    /// Python goes on with this attempt, as if nothing of the answer had been read.
    fn hand_off_attempt(&mut self, id: Id, read_ended: bool) {
        let Some(mut attempt) = self.remove_attempt(id) else { return };
        let mut held = Held::unread(std::mem::take(&mut attempt.answer).into(), read_ended);
        if !attempt.unsent.is_empty() {
            held.pending.push_back(std::mem::take(&mut attempt.unsent));
        }
        let stream = attempt.stream;
        if let Some(conn) = self.conns.get_mut(attempt.conn) {
            conn.streams.insert(stream, Use::Held(held));
        }
        self.report_attempt(attempt, Outcome::Open(stream.into()));
    }

    fn report_attempt(&mut self, attempt: Attempt, outcome: Outcome) {
        self.frontend.handed_off();
        let Attempt { service, socket, user, conn, started, .. } = attempt;
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.others += 1;
        }
        self.events.push(Event::HandedOff { user: UserSocket { service, socket, user }, conn, started, outcome });
    }

    /// Stop waiting for the answer, and reset both ends.
    pub fn cancel_attempt(&mut self, id: Id) -> Option<(Id, UserConn)> {
        let attempt = self.remove_attempt(id)?;
        if let Some(conn) = self.conns.get_mut(attempt.conn) {
            conn.streams.remove(&attempt.stream);
            abort_both(conn, attempt.stream, CANCELLED.into());
            self.mark(attempt.conn);
        }
        sockets::reset_on_close(&attempt.socket);
        Some((attempt.service, attempt.user))
    }

    fn remove_attempt(&mut self, id: Id) -> Option<Attempt> {
        let attempt = self.frontend.attempts.remove(id)?;
        self.counts.waiting(attempt.service, -1);
        self.users_changed(attempt.conn, -1);
        Some(attempt)
    }

    /// Cancel attempts whose user connection was reset, and hand off slow ones.
    pub fn check_attempts(&mut self, now: Instant) {
        self.frontend.check_at = None;
        while let Some(&(at, id)) = self.frontend.checks.front() {
            let attempt = self.frontend.attempts.get(id);
            if attempt.is_some() && at > now {
                break;
            }
            self.frontend.checks.pop_front();
            let Some(attempt) = attempt else { continue }; // answered
            let pto = self.conns.get(attempt.conn).map_or(CHECK_INTERVAL, |conn| recovery::seen(&conn.quic).pto);
            if is_reset(attempt.socket.as_raw_fd()) {
                if let Some((service, user)) = self.cancel_attempt(id) {
                    self.events.push(Event::UserReset { service, user });
                }
            } else if now.saturating_duration_since(attempt.started) >= pto.max(self.frontend.slow_after) {
                self.hand_off_attempt(id, false);
            } else {
                self.frontend.checks.push_back((now + CHECK_INTERVAL, id));
            }
        }
        self.arm_checks();
    }

    /// One timer for all: the interval is the same for every attempt.
    fn arm_checks(&mut self) {
        if self.frontend.check_at.is_none() {
            let first = self.frontend.checks.front().map(|&(at, _)| at);
            self.timers.set(Timer::Attempts, &mut self.frontend.check_at, first);
        }
    }
}
