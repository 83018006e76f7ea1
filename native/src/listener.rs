//! User connections at a server: accepted here, and passed on to the QUIC connections that Python has planned for them.
//!
//! Python plans which clients get the next connections of a service before these are accepted. A connection without a
//! grant, or for which no stream can be opened, is handed off to Python, as every one is with an engine that cannot
//! accept.

mod plan;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use quinn_proto::{Dir, StreamId};
use rustc_hash::FxHashMap;
use socket2::SockRef;

use plan::Plan;

use crate::arena::{Arena, Id};
use crate::attempts::Attempt;
use crate::engine::{Engine, Tag};
use crate::events::Event;
use crate::frames::{self, NewConn};
use crate::relay::Timeouts;
use crate::sockets;
use crate::timers::Timer;

/// User connections accepted on one bind in one round, so that established ones keep their share.
const BATCH: usize = 32;

/// Out of descriptors or memory: try again after this time; user connections stay in the listen queue meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// User connections accepted from the listen queue of a bind that closes, at most: the kernel's limit (somaxconn).
const CLOSING_BATCH: usize = 4096;

/// `qmux.quic.engine.RelayLimits`, for a service without a description.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);

/// A user connection as it is logged and announced to the client.
#[derive(Debug)]
pub struct UserConn {
    pub conn_id: u64,
    pub source: Box<str>,
    pub dest: Box<str>,
}

/// A user connection that is handed off to Python with its socket.
pub struct UserSocket {
    pub service: Id,
    pub socket: OwnedFd,
    pub user: UserConn,
}

/// Python's settings for a service. Its ID is that of its tally.
struct Service {
    name: Box<str>,
    timeouts: Timeouts,
    plan: Plan,
}

/// One listening socket.
pub struct Listener {
    socket: TcpListener,
    service: Id,
    address: SocketAddr,
    /// Accepted sockets inherit the options of this one: its queue has been empty since they were set.
    inherits: bool,
    is_reading: bool,
    is_queued: bool,
    resume_at: Option<Instant>,
}

/// The user connections of a server, until they are relayed.
#[derive(Default)]
pub struct Frontend {
    services: FxHashMap<Id, Service>,
    listeners: Arena<Listener>,
    /// Listeners that may have connections in their queue.
    waiting: VecDeque<Id>,
    pub attempts: Arena<Attempt>,
    /// Attempts that may have received more of their answer.
    pub answers_ready: VecDeque<Id>,
    /// When each attempt is checked, the earliest first.
    pub checks: VecDeque<(Instant, Id)>,
    pub check_at: Option<Instant>,
    /// User connections that may be open at the same time, those of Python included.
    limit: u64,
    /// User connections that Python serves.
    others: u64,
    next_conn_id: u64,
    /// An attempt that takes longer goes on in Python.
    pub slow_after: Duration,
}

impl Frontend {
    pub fn start(&mut self, first_conn_id: u64, limit: u64, slow_after: Duration) {
        (self.next_conn_id, self.limit, self.slow_after) = (first_conn_id, limit, slow_after);
    }

    pub fn set_others(&mut self, count: u64) {
        self.others = count;
    }

    /// Timeouts apply to relays that start from now on. A new service has no grants.
    pub fn set_service(&mut self, service: Id, name: &str, timeouts: Timeouts) {
        let known = self.services.remove(&service);
        let plan = known.map(|known| known.plan).unwrap_or_default();
        self.services.insert(service, Service { name: name.into(), timeouts, plan });
    }

    /// Replace the plan.
    pub fn plan(&mut self, service: Id, grants: Vec<(Id, u64)>) {
        if let Some(service) = self.services.get_mut(&service) {
            service.plan = Plan::new(grants);
        }
    }

    /// Grants that are not used yet.
    pub fn unused(&self, service: Id) -> u64 {
        self.services.get(&service).map_or(0, |service| service.plan.left)
    }

    pub fn timeouts(&self, service: Id) -> Timeouts {
        let default = Timeouts { idle: None, half_closed: HALF_CLOSED_TIMEOUT };
        self.services.get(&service).map_or(default, |service| service.timeouts)
    }

    /// A user connection is Python's from now on; the event is still to be delivered.
    pub fn handed_off(&mut self) {
        self.others += 1;
    }

    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.answers_ready.is_empty()
    }
}

/// The result of one accept(2).
enum Accepted {
    User(TcpStream, SocketAddr),
    Empty,
    /// This connection was aborted while queued (accept(2)); there may be others.
    Aborted,
    /// Out of descriptors or memory, or a network error of that connection (accept(2), "Error handling").
    Failed(String),
    /// Shut down through a duplicate: the bind is closed in every process.
    Closed,
}

impl Listener {
    fn accept(&mut self) -> Accepted {
        let (user, source) = match self.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.inherits = true;
                return Accepted::Empty;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Accepted::Aborted,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Accepted::Closed,
            Err(error) => return Accepted::Failed(error.to_string()),
        };
        let prepared = user.set_nonblocking(true).and_then(|()| match self.inherits {
            true => Ok(()),
            false => sockets::prepare(&SockRef::from(&user)),
        });
        match prepared {
            Ok(()) => Accepted::User(user, source),
            Err(_) => Accepted::Aborted, // closed already
        }
    }

    /// The address that the user connected to: more exact than a bind of every address.
    fn dest(&self, user: &TcpStream) -> SocketAddr {
        match self.address.ip().is_unspecified() {
            true => user.local_addr().unwrap_or(self.address),
            false => self.address,
        }
    }
}

impl Engine {
    /// A bind of `service`; nothing is accepted before `start_listener`.
    pub fn add_listener(&mut self, service: Id, socket: OwnedFd) -> io::Result<Id> {
        let socket = TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        sockets::prepare(&SockRef::from(&socket))?;
        let address = socket.local_addr()?;
        let (inherits, is_reading, is_queued, resume_at) = (false, false, false, None);
        let listener = Listener { socket, service, address, inherits, is_reading, is_queued, resume_at };
        Ok(self.frontend.listeners.insert(listener))
    }

    pub fn start_listener(&mut self, id: Id) -> io::Result<()> {
        let Some(listener) = self.frontend.listeners.get_mut(id) else { return Ok(()) };
        if !listener.is_reading {
            self.poller.add(listener.socket.as_raw_fd(), Tag::Listener, id, libc::EPOLLIN | libc::EPOLLET)?;
            listener.is_reading = true;
            self.listener_polled(id);
        }
        Ok(())
    }

    /// Its queue may have connections.
    pub fn listener_polled(&mut self, id: Id) {
        if let Some(listener) = self.frontend.listeners.get_mut(id) {
            if listener.resume_at.is_none() && !std::mem::replace(&mut listener.is_queued, true) {
                self.frontend.waiting.push_back(id);
            }
        }
    }

    pub fn listener_resumed(&mut self, id: Id) {
        if let Some(listener) = self.frontend.listeners.get_mut(id) {
            listener.resume_at = None;
            self.listener_polled(id);
        }
    }

    /// Accept a bounded share of the connections queued at each bind.
    pub fn accept_users(&mut self, now: Instant) {
        for _ in 0..self.frontend.waiting.len() {
            let Some(id) = self.frontend.waiting.pop_front() else { return };
            if let Some(listener) = self.frontend.listeners.get_mut(id) {
                listener.is_queued = false;
                if (0..BATCH).all(|_| self.accept_user(id, now)) {
                    self.listener_polled(id);
                }
            }
        }
    }

    /// Whether there may be another connection in the queue.
    fn accept_user(&mut self, id: Id, now: Instant) -> bool {
        let is_full = self.counts.users + self.frontend.others >= self.frontend.limit;
        let Some(listener) = self.frontend.listeners.get_mut(id) else { return false };
        if is_full {
            self.pause_listener(id, "as many users as this worker may have".to_owned(), now);
            return false;
        }
        match listener.accept() {
            Accepted::User(user, source) => {
                let (service, dest) = (listener.service, listener.dest(&user));
                self.user_accepted(service, user.into(), source, dest, now);
                true
            }
            Accepted::Aborted => true,
            Accepted::Empty => false,
            Accepted::Failed(reason) => {
                self.pause_listener(id, reason, now);
                false
            }
            Accepted::Closed => {
                self.remove_listener(id);
                false
            }
        }
    }

    fn pause_listener(&mut self, id: Id, reason: String, now: Instant) {
        if let Some(listener) = self.frontend.listeners.get_mut(id) {
            self.timers.set(Timer::Listener(id), &mut listener.resume_at, Some(now + EXHAUSTED_PAUSE));
            self.events.push(Event::ListenerPaused { service: listener.service, reason });
        }
    }

    fn remove_listener(&mut self, id: Id) -> Option<Listener> {
        let mut listener = self.frontend.listeners.remove(id)?;
        self.timers.set(Timer::Listener(id), &mut listener.resume_at, None);
        if listener.is_reading {
            self.poller.remove(listener.socket.as_raw_fd()); // the supervisor holds a duplicate
        }
        Some(listener)
    }

    /// Stop accepting. Without `shutdown` the queue is left to other processes that hold a duplicate of the socket.
    /// With it the bind is closed for all of them (shutdown(2) acts on the socket, close(2) on the descriptor): queued
    /// connections are accepted first, since the kernel would reset them.
    pub fn close_listener(&mut self, id: Id, shutdown: bool, now: Instant) {
        if shutdown {
            // Bounded, and only until the queue is empty.
            let _ = (0..CLOSING_BATCH).all(|_| self.accept_user(id, now));
        }
        let Some(listener) = self.remove_listener(id) else { return };
        if shutdown {
            // SAFETY: no pointers. An error means that it was shut down already.
            unsafe { libc::shutdown(listener.socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }

    fn user_accepted(&mut self, service: Id, socket: OwnedFd, source: SocketAddr, dest: SocketAddr, now: Instant) {
        let conn_id = self.frontend.next_conn_id;
        self.frontend.next_conn_id += 1;
        let user = UserConn { conn_id, source: source.to_string().into(), dest: dest.to_string().into() };
        match self.granted(service, &user) {
            Some((conn, stream, head)) => {
                self.start_attempt(Attempt::new(service, socket, user, conn, stream, now), head)
            }
            None => {
                self.frontend.handed_off();
                self.events.push(Event::Unplanned(UserSocket { service, socket, user }));
            }
        }
    }

    /// A stream for this user connection, and its first bytes; None where Python has to decide: nothing is granted, or
    /// the QUIC connection is full, since Python used it too after it had planned.
    fn granted(&mut self, service_id: Id, user: &UserConn) -> Option<(Id, StreamId, Vec<u8>)> {
        let service = self.frontend.services.get_mut(&service_id)?;
        while let Some(&(id, _)) = service.plan.grants.front() {
            let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closed) else {
                service.plan.skip();
                continue;
            };
            if conn.users + conn.others >= conn.max_users {
                return None;
            }
            let UserConn { conn_id, source, dest } = user;
            let head = frames::encode_new_conn(&NewConn { conn_id: *conn_id, service: &service.name, source, dest })?;
            let stream = conn.quic.streams().open(Dir::Bi)?;
            if service.plan.take() {
                self.events.push(Event::PlanLow { service: service_id });
            }
            return Some((id, stream, head));
        }
        None
    }

    /// Close binds, attempts and relays of user connections, and sockets in events that were not delivered yet.
    pub fn close_frontend(&mut self) {
        for id in self.frontend.listeners.ids() {
            self.remove_listener(id);
        }
        self.frontend.services.clear();
        for id in self.frontend.attempts.ids() {
            self.cancel_attempt(id);
        }
        self.end_user_relays();
        for event in &self.events {
            if let Some(socket) = event.socket() {
                sockets::reset_on_close(socket);
            }
        }
        self.events.retain(|event| event.socket().is_none());
    }
}
