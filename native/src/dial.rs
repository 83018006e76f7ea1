//! Users who come to a client: the head of their stream, the service's socket, the answer, the relay.
//!
//! Only what is usual happens here. Anything else, from an unknown frame to a service that refuses, goes to
//! Python as a new stream from its first byte on: it begins again, and every rule, message and counter stays there.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{Dir, ReadError, StreamId, VarInt};
use rustc_hash::FxHashMap;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::arena::Id;
use crate::connection::Conn;
use crate::counts::User;
use crate::engine::{Engine, Tag};
use crate::events::Event;
use crate::frames::{self, Parsed};
use crate::relay::Patience;
use crate::sockets;
use crate::stream::{Held, Use};
use crate::timers::Timer;

/// A service that takes longer is not usual.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Sockets that are made before relays move bytes again: half a millisecond's work.
const USERS_PER_TURN: usize = 32;

/// Of most heads.
const HEAD_BYTES: usize = 160;

/// `qmux.protocol.frames.AppCode.TIMED_OUT`
const TIMED_OUT: u32 = 0x13;

/// Where the users of a service go.
pub struct Target {
    pub address: SockAddr,
    /// What is counted of them.
    pub tally: Id,
    pub timeout: Duration,
    /// A name's address is no answer for long.
    pub until: Option<Instant>,
}

/// What all connections of a client have in common.
pub struct Dialer {
    pub targets: FxHashMap<Box<str>, Target>,
    /// A stream whose head is not complete by then is given up.
    pub head_timeout: Duration,
}

/// What a registered connection knows of its users.
pub struct Serving {
    /// In `Engine::dialers`.
    pub dialer: Id,
    pub patience: FxHashMap<Box<str>, Patience>,
}

/// A user until the relay.
pub struct Newcomer {
    conn: Id,
    stream: StreamId,
    head: Vec<u8>,
    dialled_at: Option<Instant>,
    dialled: Option<Dialled>,
    timer_at: Option<Instant>,
    queued: bool,
}

/// A socket that is being connected.
struct Dialled {
    socket: Socket,
    to: SockAddr,
    user: User,
    patience: Patience,
}

/// What is there of a head.
enum Head {
    Part,
    Whole,
    Unusual,
    /// FIN inside of it.
    Ended,
    Reset(VarInt),
}

impl Newcomer {
    fn new(conn: Id, stream: StreamId) -> Self {
        Self {
            conn,
            stream,
            head: Vec::with_capacity(HEAD_BYTES),
            dialled_at: None,
            dialled: None,
            timer_at: None,
            queued: false,
        }
    }

    /// Read on; never beyond the head.
    fn read(&mut self, conn: &mut Conn) -> Head {
        let mut receive = conn.quic.recv_stream(self.stream);
        let Ok(mut chunks) = receive.read(true) else { return Head::Ended };
        let head = loop {
            let wanted = match frames::new_conn(&self.head) {
                Parsed::Wants(wanted) => wanted,
                Parsed::Whole(_) => break Head::Whole,
                Parsed::Unusual => break Head::Unusual,
            };
            match chunks.next(wanted) {
                Ok(Some(chunk)) => self.head.extend_from_slice(&chunk.bytes),
                Ok(None) => break Head::Ended,
                Err(ReadError::Blocked) => break Head::Part,
                Err(ReadError::Reset(code)) => break Head::Reset(code),
            }
        };
        let _ = chunks.finalize(); // the caller marks the connection in any case
        head
    }
}

/// A socket on its way to `to`, and whether it is there.
fn connect(to: &SockAddr) -> io::Result<(Socket, bool)> {
    let socket = Socket::new(Domain::from(i32::from(to.family())), Type::STREAM.nonblocking(), None)?;
    // The second call says how the first one went: over loopback the handshake is through by then (connect(2)).
    let outcome = match socket.connect(to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => socket.connect(to),
        outcome => outcome,
    };
    match outcome.as_ref().map_err(io::Error::raw_os_error) {
        Ok(()) | Err(Some(libc::EISCONN)) => Ok((socket, true)),
        Err(Some(libc::EINPROGRESS | libc::EALREADY)) => Ok((socket, false)),
        Err(_) => outcome.map(|()| (socket, false)),
    }
}

/// As `qmux.sockets.prepare`; false where it is connected to itself (a port that nobody listens on may be drawn
/// as our own).
fn prepare(socket: &Socket, to: &SockAddr) -> io::Result<bool> {
    if to.is_unix() {
        return Ok(true);
    }
    sockets::prepare(&SockRef::from(socket))?;
    Ok(socket.local_addr()?.as_socket() != to.as_socket())
}

impl Engine {
    /// Streams that the peer opened: of users, where the connection serves any, else Python's.
    pub fn accept_streams(&mut self, id: Id, dir: Dir) {
        while let Some(conn) = self.conns.get_mut(id) {
            let Some(stream) = conn.quic.streams().accept(dir) else { return };
            if conn.serving.is_some() {
                let newcomer = self.newcomers.insert(Newcomer::new(id, stream));
                conn.streams.insert(stream, Use::Newcomer(newcomer));
                self.users_changed(id, 1);
            } else {
                conn.streams.insert(stream, Use::Held(Held::default()));
                self.events.push(Event::StreamOpened { conn: id, stream: stream.into(), dialled_for: Duration::ZERO });
            }
            self.stream_readable(id, stream); // it may begin with its end
        }
    }

    /// More of its head may be there.
    pub fn newcomer_readable(&mut self, id: Id) {
        if let Some(newcomer) = self.newcomers.get_mut(id) {
            if newcomer.dialled.is_none() && !std::mem::replace(&mut newcomer.queued, true) {
                self.arriving.push_back(id);
            }
        }
    }

    /// A bounded share of those who wait.
    pub fn serve_newcomers(&mut self, now: Instant) {
        for _ in 0..USERS_PER_TURN {
            let Some(id) = self.arriving.pop_front() else { return };
            self.serve_newcomer(id, now);
        }
    }

    fn serve_newcomer(&mut self, id: Id, now: Instant) {
        let Some(newcomer) = self.newcomers.get_mut(id) else { return };
        newcomer.queued = false;
        let (conn_id, stream) = (newcomer.conn, newcomer.stream);
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let head = newcomer.read(conn);
        let is_armed = newcomer.timer_at.is_some();
        let dialer = conn.serving.as_ref().and_then(|serving| self.dialers.get(serving.dialer));
        let patience = dialer.map_or(Duration::ZERO, |dialer| dialer.head_timeout);
        self.mark(conn_id);
        match head {
            Head::Part if is_armed => {}
            Head::Part => self.arm_newcomer(id, now + patience),
            Head::Whole => self.dial(id, now),
            Head::Unusual => self.leave_to_python(id, false, now),
            Head::Ended => self.leave_to_python(id, true, now),
            Head::Reset(code) => self.stream_ended(conn_id, stream, code),
        }
    }

    fn dial(&mut self, id: Id, now: Instant) {
        let Some((to, user, patience, timeout)) = self.plan(id, now) else {
            return self.leave_to_python(id, false, now);
        };
        if let Some(newcomer) = self.newcomers.get_mut(id) {
            newcomer.dialled_at = Some(now);
        }
        let Ok((socket, is_connected)) = connect(&to) else { return self.leave_to_python(id, false, now) };
        let fd = socket.as_raw_fd();
        let dialled = Dialled { socket, to, user, patience };
        if is_connected {
            return self.dialled(id, dialled, now);
        }
        if self.poller.add(fd, Tag::Newcomer, id, libc::EPOLLOUT | libc::EPOLLET).is_err() {
            return self.leave_to_python(id, false, now);
        }
        if let Some(newcomer) = self.newcomers.get_mut(id) {
            newcomer.dialled = Some(dialled);
        }
        self.arm_newcomer(id, now + timeout.min(DIAL_TIMEOUT));
    }

    /// Where this user goes and for how long; None where Python has something to say about it.
    fn plan(&self, id: Id, now: Instant) -> Option<(SockAddr, User, Patience, Duration)> {
        let newcomer = self.newcomers.get(id)?;
        let Parsed::Whole(new) = frames::new_conn(&newcomer.head) else { return None };
        let serving = self.conns.get(newcomer.conn)?.serving.as_ref()?;
        let target = self.dialers.get(serving.dialer)?.targets.get(new.service)?;
        if target.until.is_some_and(|until| until <= now) {
            return None;
        }
        let patience = *serving.patience.get(new.service)?;
        let user = User { tally: target.tally, conn_id: new.conn_id, source: new.source.into() };
        Some((target.address.clone(), user, patience, target.timeout))
    }

    /// epoll saw that an attempt to connect has come to its end.
    pub fn newcomer_polled(&mut self, id: Id, now: Instant) {
        let Some(dialled) = self.newcomers.get_mut(id).and_then(|newcomer| newcomer.dialled.take()) else { return };
        match dialled.socket.take_error() {
            Ok(None) => {
                self.poller.remove(dialled.socket.as_raw_fd());
                self.dialled(id, dialled, now);
            }
            Ok(Some(_)) | Err(_) => self.leave_to_python(id, false, now),
        }
    }

    /// Connected: say so, and relay.
    fn dialled(&mut self, id: Id, dialled: Dialled, now: Instant) {
        let Dialled { socket, to, user, patience } = dialled;
        if !matches!(prepare(&socket, &to), Ok(true)) {
            sockets::reset_on_close(&socket);
            return self.leave_to_python(id, false, now);
        }
        let Some(newcomer) = self.forget_newcomer(id) else { return };
        if let Some(conn) = self.conns.get_mut(newcomer.conn) {
            let answer = Bytes::from_static(&frames::READY);
            conn.streams.insert(newcomer.stream, Use::Held(Held::writing(answer)));
        }
        // Err: epoll did not take it, and the relay has ended with an error of the socket.
        let _ = self.start_relay(newcomer.conn, newcomer.stream, socket.into(), patience, Some(user), now);
    }

    /// A new stream with everything that was read of it, and the time that it was dialled for.
    fn leave_to_python(&mut self, id: Id, read_ended: bool, now: Instant) {
        let Some(newcomer) = self.forget_newcomer(id) else { return };
        let Newcomer { conn: conn_id, stream, head, dialled_at, .. } = newcomer;
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        conn.streams.insert(stream, Use::Held(Held::unread(head.into(), read_ended)));
        let dialled_for = dialled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.events.push(Event::StreamOpened { conn: conn_id, stream: stream.into(), dialled_for });
        self.users_changed(conn_id, -1);
    }

    fn arm_newcomer(&mut self, id: Id, at: Instant) {
        if let Some(newcomer) = self.newcomers.get_mut(id) {
            self.timers.set(Timer::Newcomer(id), &mut newcomer.timer_at, Some(at));
        }
    }

    pub fn newcomer_timed_out(&mut self, id: Id, now: Instant) {
        let Some(newcomer) = self.newcomers.get_mut(id) else { return };
        newcomer.timer_at = None;
        let (conn_id, stream) = (newcomer.conn, newcomer.stream);
        if newcomer.dialled.is_some() {
            return self.leave_to_python(id, false, now);
        }
        self.stream_ended(conn_id, stream, TIMED_OUT.into());
    }

    /// Its stream has ended, or its connection: nobody waits for an answer.
    pub fn newcomer_gone(&mut self, id: Id) {
        if let Some(newcomer) = self.forget_newcomer(id) {
            self.users_changed(newcomer.conn, -1);
        }
    }

    fn forget_newcomer(&mut self, id: Id) -> Option<Newcomer> {
        let mut newcomer = self.newcomers.remove(id)?;
        self.timers.set(Timer::Newcomer(id), &mut newcomer.timer_at, None);
        Some(newcomer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;

    fn local() -> SockAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()
    }

    #[test]
    fn a_listener_is_reached_at_once_over_loopback() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let to = listener.local_addr().expect("it is bound").into();
        let (socket, _) = connect(&to).expect("somebody listens");
        assert!(prepare(&socket, &to).expect("options that TCP has"));
        assert!(socket.tcp_nodelay().expect("an option that TCP has"));
    }

    #[test]
    fn a_port_that_nobody_listens_on_refuses() {
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        bound.bind(&local()).expect("a free port");
        let to = bound.local_addr().expect("it is bound");
        let refusal = match connect(&to) {
            Ok((socket, _)) => socket.take_error().expect("an option that every socket has").expect("it was refused"),
            Err(error) => error,
        };
        assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_that_is_connected_to_itself_is_no_service() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&local()).expect("a free port");
        let to = socket.local_addr().expect("it is bound");
        socket.connect(&to).expect("both sides open at the same time (RFC 9293 section 3.5)");
        assert!(!prepare(&socket, &to).expect("options that TCP has"));
    }
}
