//! Users who wait for the answer of a client: asked for with a stream, relayed as soon as the service is connected.
//!
//! Only the quick and usual answer is heard here. A refusal, a reset, a lost connection go to Python with the user, and so
//! does an attempt that takes long: it goes on there, with the clock of `qmux.protocol.attempt`. Nothing is tried twice.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ReadError, StreamId, VarInt};

use crate::arena::Id;
use crate::connection::Conn;
use crate::counts::User;
use crate::engine::Engine;
use crate::events::{Event, Outcome};
use crate::frames::{self, Answer, Parsed};
use crate::listener::{About, Left};
use crate::recovery;
use crate::sockets;
use crate::stream::{abort_both, Held, Use};
use crate::timers::Timer;

/// How often a user who waits is looked at. An attempt is slow when it is older than `Front::slow_after` and than the
/// connection's probe timeout: until then even Python would only wait.
const LOOK: Duration = Duration::from_millis(100);

// `qmux.protocol.frames.AppCode`
const NONE: u32 = 0x00;
const CANCELLED: u32 = 0x11;

/// One attempt.
pub struct Asking {
    service: Id,
    socket: OwnedFd,
    about: About,
    conn: Id,
    stream: StreamId,
    began: Instant,
    /// Of the request, what quinn did not take yet.
    unsent: Bytes,
    /// Of the answer, what came.
    answer: Vec<u8>,
    is_queued: bool,
}

/// What is there of an answer.
enum Heard {
    Part,
    Ready,
    Refused { code: String, reason: String },
    Unusual { read_ended: bool },
    Reset(VarInt),
}

impl Asking {
    pub fn new(service: Id, socket: OwnedFd, about: About, conn: Id, stream: StreamId, now: Instant) -> Self {
        let (unsent, answer, is_queued) = (Bytes::new(), Vec::new(), false);
        Self { service, socket, about, conn, stream, began: now, unsent, answer, is_queued }
    }

    fn flush(&mut self, conn: &mut Conn) {
        while !self.unsent.is_empty() {
            let sent = conn.quic.send_stream(self.stream).write_chunks(std::slice::from_mut(&mut self.unsent));
            if sent.is_err() {
                return; // no room yet, or the peer ended the stream, of which an event tells
            }
        }
    }

    /// Read on; never beyond the answer.
    fn read(&mut self, conn: &mut Conn) -> Heard {
        let mut receive = conn.quic.recv_stream(self.stream);
        let Ok(mut chunks) = receive.read(true) else { return Heard::Unusual { read_ended: true } };
        let heard = loop {
            let wanted = match frames::answer(&self.answer) {
                Parsed::Wants(wanted) => wanted,
                Parsed::Whole(Answer::Ready) => break Heard::Ready,
                Parsed::Whole(Answer::Refused { code, reason }) => {
                    break Heard::Refused { code: code.to_owned(), reason: reason.to_owned() };
                }
                Parsed::Unusual => break Heard::Unusual { read_ended: false },
            };
            match chunks.next(wanted) {
                Ok(Some(chunk)) => self.answer.extend_from_slice(&chunk.bytes),
                Ok(None) => break Heard::Unusual { read_ended: true },
                Err(ReadError::Blocked) => break Heard::Part,
                Err(ReadError::Reset(code)) => break Heard::Reset(code),
            }
        };
        let _ = chunks.finalize(); // the caller marks the connection in any case
        heard
    }
}

/// Whether the other end reset the connection; looking does not clear it. A FIN is no such sign: who has said all may
/// still wait for the answer.
fn is_reset(fd: RawFd) -> bool {
    let mut look = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: the pointer is to one pollfd, as the count says.
    let found = unsafe { libc::poll(&mut look, 1, 0) };
    found > 0 && look.revents & libc::POLLERR != 0
}

impl Engine {
    /// Send the request and wait for the answer.
    pub fn ask(&mut self, mut asking: Asking, head: Vec<u8>) {
        let (conn_id, stream, now) = (asking.conn, asking.stream, asking.began);
        asking.unsent = head.into();
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        asking.flush(conn);
        self.counts.asking(asking.service, 1);
        let id = self.front.askings.insert(asking);
        conn.streams.insert(stream, Use::Asking(id));
        self.users_changed(conn_id, 1);
        self.mark(conn_id);
        self.front.looks.push_back((now + LOOK, id));
        self.arm_looks();
    }

    pub fn asking_writable(&mut self, id: Id) {
        let Some(asking) = self.front.askings.get_mut(id) else { return };
        let Some(conn) = self.conns.get_mut(asking.conn) else { return };
        asking.flush(conn);
        let conn = asking.conn;
        self.mark(conn);
    }

    /// Something of the answer may be there.
    pub fn asking_readable(&mut self, id: Id) {
        if let Some(asking) = self.front.askings.get_mut(id) {
            if !std::mem::replace(&mut asking.is_queued, true) {
                self.front.heard.push_back(id);
            }
        }
    }

    /// Everything that clients answered.
    pub fn hear_answers(&mut self, now: Instant) {
        while let Some(id) = self.front.heard.pop_front() {
            self.hear_answer(id, now);
        }
    }

    fn hear_answer(&mut self, id: Id, now: Instant) {
        let Some(asking) = self.front.askings.get_mut(id) else { return };
        asking.is_queued = false;
        let (conn_id, stream) = (asking.conn, asking.stream);
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let heard = asking.read(conn);
        if matches!(heard, Heard::Refused { .. }) {
            conn.streams.remove(&stream);
            abort_both(conn, stream, NONE.into());
        }
        self.mark(conn_id);
        match heard {
            Heard::Part => {}
            Heard::Ready => self.answered(id, now),
            Heard::Refused { code, reason } => {
                self.asking_failed(id, Outcome::Refused { code, reason });
            }
            Heard::Unusual { read_ended } => self.leave_asking(id, read_ended),
            Heard::Reset(code) => self.stream_ended(conn_id, stream, code),
        }
    }

    /// The service is connected.
    fn answered(&mut self, id: Id, now: Instant) {
        let Some(asking) = self.front.askings.remove(id) else { return };
        self.counts.asking(asking.service, -1);
        let Asking { service, socket, about, conn: conn_id, stream, unsent, .. } = asking;
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let held = if unsent.is_empty() { Held::default() } else { Held::writing(unsent) };
        conn.streams.insert(stream, Use::Held(held));
        let user = User { tally: service, conn_id: about.conn_id, source: about.source };
        let patience = self.front.patience(service);
        // Err: epoll did not take it, and the relay has ended with an error of the socket.
        let _ = self.start_relay(conn_id, stream, socket, patience, Some(user), now);
    }

    /// The stream was ended by the client, or its connection is gone: Python looks for another one.
    pub fn asking_failed(&mut self, id: Id, outcome: Outcome) {
        if let Some(asking) = self.forget_asking(id) {
            self.tell_asked(asking, outcome);
        }
    }

    /// Python goes on with this attempt, which it finds as if nothing was read of the answer.
    fn leave_asking(&mut self, id: Id, read_ended: bool) {
        let Some(mut asking) = self.forget_asking(id) else { return };
        let mut held = Held::unread(std::mem::take(&mut asking.answer).into(), read_ended);
        if !asking.unsent.is_empty() {
            held.pending.push_back(std::mem::take(&mut asking.unsent));
        }
        let stream = asking.stream;
        if let Some(conn) = self.conns.get_mut(asking.conn) {
            conn.streams.insert(stream, Use::Held(held));
        }
        self.tell_asked(asking, Outcome::Open(stream.into()));
    }

    fn tell_asked(&mut self, asking: Asking, outcome: Outcome) {
        self.front.gave_away();
        let Asking { service, socket, about, conn, began, .. } = asking;
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.others += 1;
        }
        self.events.push(Event::Asked { left: Left { service, socket, about }, conn, began, outcome });
    }

    /// The answer is not waited for any more.
    pub fn give_up(&mut self, id: Id) -> Option<(Id, About)> {
        let asking = self.forget_asking(id)?;
        if let Some(conn) = self.conns.get_mut(asking.conn) {
            conn.streams.remove(&asking.stream);
            abort_both(conn, asking.stream, CANCELLED.into());
            self.mark(asking.conn);
        }
        sockets::reset_on_close(&asking.socket);
        Some((asking.service, asking.about))
    }

    fn forget_asking(&mut self, id: Id) -> Option<Asking> {
        let asking = self.front.askings.remove(id)?;
        self.counts.asking(asking.service, -1);
        self.users_changed(asking.conn, -1);
        Some(asking)
    }

    /// Those who have waited for a while.
    pub fn look_at_askings(&mut self, now: Instant) {
        self.front.look_at = None;
        while let Some(&(at, id)) = self.front.looks.front() {
            let asking = self.front.askings.get(id);
            if asking.is_some() && at > now {
                break;
            }
            self.front.looks.pop_front();
            let Some(asking) = asking else { continue }; // answered
            let pto = self.conns.get(asking.conn).map_or(LOOK, |conn| recovery::seen(&conn.quic).pto);
            if is_reset(asking.socket.as_raw_fd()) {
                if let Some((service, about)) = self.give_up(id) {
                    self.events.push(Event::UserGone { service, about });
                }
            } else if now.saturating_duration_since(asking.began) >= pto.max(self.front.slow_after) {
                self.leave_asking(id, false);
            } else {
                self.front.looks.push_back((now + LOOK, id));
            }
        }
        self.arm_looks();
    }

    /// One timer for all: everybody waits for the same time.
    fn arm_looks(&mut self) {
        if self.front.look_at.is_none() {
            let first = self.front.looks.front().map(|&(at, _)| at);
            self.timers.set(Timer::Looks, &mut self.front.look_at, first);
        }
    }
}
