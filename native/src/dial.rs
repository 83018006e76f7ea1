//! User connections at a client: the head of their stream, the service's socket, the answer, the relay.
//!
//! Only the usual case is handled here. Anything else, from an unknown frame to a service that refuses, is handed off
//! to Python as a new stream from its first byte on: Python starts over, and every rule, message and counter stays
//! there.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{Dir, ReadError, StreamId, VarInt};
use rustc_hash::FxHashMap;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::arena::Id;
use crate::connection::Conn;
use crate::counts::RelayedUser;
use crate::engine::{Engine, Tag};
use crate::events::Event;
use crate::frames::{self, Parsed};
use crate::relay::Timeouts;
use crate::sockets;
use crate::stream::{Held, Use};
use crate::timers::Timer;

/// A name whose address takes longer is left to Python, which tries its other addresses. Not 1, 3 or 7 s, at which the
/// kernel repeats a SYN that was lost (RFC 6298 section 2: 1 s, doubled each time): the answer would come just too late.
const NAME_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests served before relays move bytes again: half a millisecond's work.
const REQUESTS_PER_TURN: usize = 32;

/// Enough for most heads.
const HEAD_BYTES: usize = 160;

/// `qmux.protocol.frames.AppCode.TIMED_OUT`
const TIMED_OUT: u32 = 0x13;

/// The address of a service, to which its user connections are dialled.
pub struct Target {
    pub address: SockAddr,
    /// Where they are counted.
    pub tally: Id,
    pub timeout: Duration,
    /// An address from a name is valid for a short time only.
    pub until: Option<Instant>,
}

/// What all connections of a client have in common.
pub struct Dialer {
    pub targets: FxHashMap<Box<str>, Target>,
    /// A stream whose head is not complete by then is aborted.
    pub head_timeout: Duration,
}

/// How the streams of a registered connection are served.
pub struct Serving {
    /// In `Engine::dialers`.
    pub dialer: Id,
    pub timeouts: FxHashMap<Box<str>, Timeouts>,
}

/// A user connection that a server requested, until it is relayed.
pub struct Request {
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
    user: RelayedUser,
    timeouts: Timeouts,
}

/// How far a head was received.
enum Head {
    Incomplete,
    Whole,
    Unusual,
    /// FIN inside of it.
    Ended,
    Reset(VarInt),
}

impl Request {
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

    /// Continue to read; never beyond the head.
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
                Err(ReadError::Blocked) => break Head::Incomplete,
                Err(ReadError::Reset(code)) => break Head::Reset(code),
            }
        };
        let _ = chunks.finalize(); // the caller marks the connection in any case
        head
    }
}

/// A socket that connects to `to`, and whether it is connected already.
fn connect(to: &SockAddr) -> io::Result<(Socket, bool)> {
    let socket = Socket::new(Domain::from(i32::from(to.family())), Type::STREAM.nonblocking(), None)?;
    // The second call returns the result of the first: over loopback the handshake is complete by then (connect(2)).
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

/// Whether an attempt to connect has come to its end, good or bad (connect(2), EINPROGRESS).
fn is_through(socket: &Socket) -> bool {
    sockets::polled(socket.as_raw_fd(), libc::POLLOUT) != 0
}

/// As `qmux.sockets.prepare`; false where it is connected to itself (a port on which nothing listens may be drawn
/// as our own).
fn prepare(socket: &Socket, to: &SockAddr) -> io::Result<bool> {
    if to.is_unix() {
        return Ok(true);
    }
    sockets::prepare(&SockRef::from(socket))?;
    Ok(socket.local_addr()?.as_socket() != to.as_socket())
}

impl Engine {
    /// Streams that the peer opened: requests for user connections, where this connection serves them, else Python's.
    pub fn accept_streams(&mut self, id: Id, dir: Dir) {
        while let Some(conn) = self.conns.get_mut(id) {
            let Some(stream) = conn.quic.streams().accept(dir) else { return };
            if conn.serving.is_some() {
                let request = self.requests.insert(Request::new(id, stream));
                conn.streams.insert(stream, Use::Request(request));
                self.users_changed(id, 1);
            } else {
                conn.streams.insert(stream, Use::Held(Held::default()));
                self.events.push(Event::StreamOpened { conn: id, stream: stream.into(), dialled_for: Duration::ZERO });
            }
            self.stream_readable(id, stream); // FIN may have arrived with it
        }
    }

    /// There may be more of its head.
    pub fn request_readable(&mut self, id: Id) {
        if let Some(request) = self.requests.get_mut(id) {
            if request.dialled.is_none() && !std::mem::replace(&mut request.queued, true) {
                self.requests_ready.push_back(id);
            }
        }
    }

    /// Serve a bounded share of the requests that may have their head.
    pub fn serve_requests(&mut self, now: Instant) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(id) = self.requests_ready.pop_front() else { return };
            self.serve_request(id, now);
        }
    }

    fn serve_request(&mut self, id: Id, now: Instant) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.queued = false;
        let (conn_id, stream) = (request.conn, request.stream);
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let head = request.read(conn);
        let is_armed = request.timer_at.is_some();
        let dialer = conn.serving.as_ref().and_then(|serving| self.dialers.get(serving.dialer));
        let head_timeout = dialer.map_or(Duration::ZERO, |dialer| dialer.head_timeout);
        self.mark(conn_id);
        match head {
            Head::Incomplete if is_armed => {}
            Head::Incomplete => self.arm_request(id, now + head_timeout),
            Head::Whole => self.dial(id, now),
            Head::Unusual => self.hand_off_request(id, false, now),
            Head::Ended => self.hand_off_request(id, true, now),
            Head::Reset(code) => self.stream_ended(conn_id, stream, code),
        }
    }

    fn dial(&mut self, id: Id, now: Instant) {
        let Some((to, user, timeouts, timeout)) = self.target(id, now) else {
            return self.hand_off_request(id, false, now);
        };
        if let Some(request) = self.requests.get_mut(id) {
            request.dialled_at = Some(now);
        }
        let Ok((socket, is_connected)) = connect(&to) else { return self.hand_off_request(id, false, now) };
        let fd = socket.as_raw_fd();
        let dialled = Dialled { socket, to, user, timeouts };
        if is_connected {
            return self.dialled(id, dialled, now);
        }
        if self.poller.add(fd, Tag::Request, id, libc::EPOLLOUT | libc::EPOLLET).is_err() {
            return self.hand_off_request(id, false, now);
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.dialled = Some(dialled);
        }
        self.arm_request(id, now + timeout);
    }

    /// The address to dial, with its timeouts; None where Python has to decide.
    fn target(&self, id: Id, now: Instant) -> Option<(SockAddr, RelayedUser, Timeouts, Duration)> {
        let request = self.requests.get(id)?;
        let Parsed::Whole(new) = frames::new_conn(&request.head) else { return None };
        let serving = self.conns.get(request.conn)?.serving.as_ref()?;
        let target = self.dialers.get(serving.dialer)?.targets.get(new.service)?;
        if target.until.is_some_and(|until| until <= now) {
            return None;
        }
        let timeouts = *serving.timeouts.get(new.service)?;
        let user = RelayedUser { tally: target.tally, conn_id: new.conn_id, source: new.source.into() };
        let is_name = target.until.is_some();
        let timeout = if is_name { target.timeout.min(NAME_DIAL_TIMEOUT) } else { target.timeout };
        Some((target.address.clone(), user, timeouts, timeout))
    }

    /// epoll reports that an attempt to connect has ended.
    pub fn request_polled(&mut self, id: Id, now: Instant) {
        let Some(dialled) = self.requests.get_mut(id).and_then(|request| request.dialled.take()) else { return };
        match dialled.socket.take_error() {
            Ok(None) => {
                self.poller.remove(dialled.socket.as_raw_fd());
                self.dialled(id, dialled, now);
            }
            Ok(Some(_)) | Err(_) => self.hand_off_request(id, false, now),
        }
    }

    /// Connected: send ConnReady, and relay.
    fn dialled(&mut self, id: Id, dialled: Dialled, now: Instant) {
        let Dialled { socket, to, user, timeouts } = dialled;
        if !matches!(prepare(&socket, &to), Ok(true)) {
            sockets::reset_on_close(&socket);
            return self.hand_off_request(id, false, now);
        }
        let Some(request) = self.remove_request(id) else { return };
        if let Some(conn) = self.conns.get_mut(request.conn) {
            let answer = Bytes::from_static(&frames::READY);
            conn.streams.insert(request.stream, Use::Held(Held::writing(answer)));
        }
        // Err: epoll did not take it, and the relay has ended with an error of the socket.
        let _ = self.start_relay(request.conn, request.stream, socket.into(), timeouts, Some(user), now);
    }

    /// Pass it on as a new stream, with everything that was read of it and the time spent dialling.
    fn hand_off_request(&mut self, id: Id, read_ended: bool, now: Instant) {
        let Some(request) = self.remove_request(id) else { return };
        let Request { conn: conn_id, stream, head, dialled_at, .. } = request;
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        conn.streams.insert(stream, Use::Held(Held::unread(head.into(), read_ended)));
        let dialled_for = dialled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.events.push(Event::StreamOpened { conn: conn_id, stream: stream.into(), dialled_for });
        self.users_changed(conn_id, -1);
    }

    fn arm_request(&mut self, id: Id, at: Instant) {
        if let Some(request) = self.requests.get_mut(id) {
            self.timers.set(Timer::Request(id), &mut request.timer_at, Some(at));
        }
    }

    pub fn request_timed_out(&mut self, id: Id, now: Instant) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.timer_at = None;
        let (conn_id, stream) = (request.conn, request.stream);
        if let Some(dialled) = &request.dialled {
            // Both may be due after a pause: an attempt that is through by now is not made again.
            return match is_through(&dialled.socket) {
                true => self.request_polled(id, now),
                false => self.hand_off_request(id, false, now),
            };
        }
        self.stream_ended(conn_id, stream, TIMED_OUT.into());
    }

    /// Its stream has ended, or its connection is closed: no answer is needed.
    pub fn drop_request(&mut self, id: Id) {
        if let Some(request) = self.remove_request(id) {
            self.users_changed(request.conn, -1);
        }
    }

    fn remove_request(&mut self, id: Id) -> Option<Request> {
        let mut request = self.requests.remove(id)?;
        self.timers.set(Timer::Request(id), &mut request.timer_at, None);
        Some(request)
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
        let (socket, _) = connect(&to).expect("the listener above");
        assert!(prepare(&socket, &to).expect("options that TCP has"));
        assert!(socket.tcp_nodelay().expect("an option that TCP has"));
    }

    #[test]
    fn a_port_without_a_listener_refuses() {
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
