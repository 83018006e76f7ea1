//! Users who come to a server: accepted here, and given to the connections that Python has granted them to.
//!
//! Python decides who gets the next users of a service, before they come. Whoever comes when nothing is granted, or where
//! a stream cannot be opened, goes to Python, which looks at him as at every user of an engine without this.

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
use crate::asking::Asking;
use crate::engine::{Engine, Tag};
use crate::events::Event;
use crate::frames::{self, NewConn};
use crate::relay::Patience;
use crate::sockets;
use crate::timers::Timer;

/// Users of one bind in one round, so that established ones keep their share.
const BATCH: usize = 32;

/// Out of descriptors or memory: look again after this time; the kernel's queue holds the users meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Users taken from the queue of a bind that closes, at most: the kernel's own limit of a queue (somaxconn).
const CLOSING_BATCH: usize = 4096;

/// `qmux.quic.engine.RelayLimits`, for a service without a description.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);

/// A user as the log and the client know him.
#[derive(Debug)]
pub struct About {
    pub conn_id: u64,
    pub source: Box<str>,
    pub dest: Box<str>,
}

/// A user who is Python's from now on, and so is the socket.
pub struct Left {
    pub service: Id,
    pub socket: OwnedFd,
    pub about: About,
}

/// What Python said of a service. Its number is that of its tally.
struct Service {
    name: Box<str>,
    patience: Patience,
    plan: Plan,
}

/// One traffic socket.
pub struct Listener {
    socket: TcpListener,
    service: Id,
    address: SocketAddr,
    /// Whoever is accepted has the options of this socket: its queue has been empty since they were set.
    inherits: bool,
    is_reading: bool,
    is_queued: bool,
    resume_at: Option<Instant>,
}

/// Everything about the users of a server.
#[derive(Default)]
pub struct Front {
    services: FxHashMap<Id, Service>,
    listeners: Arena<Listener>,
    /// Listeners that may have users.
    waiting: VecDeque<Id>,
    pub askings: Arena<Asking>,
    /// Those of them for whom something of an answer may have come.
    pub heard: VecDeque<Id>,
    /// When each of them is looked at, the oldest first.
    pub looks: VecDeque<(Instant, Id)>,
    pub look_at: Option<Instant>,
    /// Users who may be here at the same time, those of Python included.
    limit: u64,
    /// Python's.
    others: u64,
    next_conn_id: u64,
    /// An attempt that takes longer goes on in Python.
    pub slow_after: Duration,
}

impl Front {
    pub fn begin(&mut self, first_conn_id: u64, limit: u64, slow_after: Duration) {
        (self.next_conn_id, self.limit, self.slow_after) = (first_conn_id, limit, slow_after);
    }

    pub fn set_others(&mut self, count: u64) {
        self.others = count;
    }

    /// The timeouts of relays from now on; nothing is granted in a service that is new.
    pub fn set_service(&mut self, service: Id, name: &str, patience: Patience) {
        let known = self.services.remove(&service);
        let plan = known.map(|known| known.plan).unwrap_or_default();
        self.services.insert(service, Service { name: name.into(), patience, plan });
    }

    /// Void the plan that was, and follow this one.
    pub fn plan(&mut self, service: Id, grants: Vec<(Id, u64)>) {
        if let Some(service) = self.services.get_mut(&service) {
            service.plan = Plan::new(grants);
        }
    }

    /// How many users are granted and have not come.
    pub fn unused(&self, service: Id) -> u64 {
        self.services.get(&service).map_or(0, |service| service.plan.left)
    }

    pub fn patience(&self, service: Id) -> Patience {
        let default = Patience { idle: None, half_closed: HALF_CLOSED_TIMEOUT };
        self.services.get(&service).map_or(default, |service| service.patience)
    }

    /// A user is Python's from now on, which does not know it yet.
    pub fn gave_away(&mut self) {
        self.others += 1;
    }

    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.heard.is_empty()
    }
}

/// What came of an attempt to accept.
enum Accepted {
    User(TcpStream, SocketAddr),
    Nobody,
    /// He gave up while queued (accept(2)); the next one may not have.
    Gave,
    /// Out of descriptors or memory, or a network error of that user (accept(2), "Error handling").
    Failed(String),
    /// Shut down through a duplicate: this bind is over for everybody.
    Over,
}

impl Listener {
    fn accept(&mut self) -> Accepted {
        let (user, source) = match self.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.inherits = true;
                return Accepted::Nobody;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Accepted::Gave,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Accepted::Over,
            Err(error) => return Accepted::Failed(error.to_string()),
        };
        let prepared = user.set_nonblocking(true).and_then(|()| match self.inherits {
            true => Ok(()),
            false => sockets::prepare(&SockRef::from(&user)),
        });
        match prepared {
            Ok(()) => Accepted::User(user, source),
            Err(_) => Accepted::Gave, // he has left already
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
        Ok(self.front.listeners.insert(listener))
    }

    pub fn start_listener(&mut self, id: Id) -> io::Result<()> {
        let Some(listener) = self.front.listeners.get_mut(id) else { return Ok(()) };
        if !listener.is_reading {
            self.poller.add(listener.socket.as_raw_fd(), Tag::Listener, id, libc::EPOLLIN | libc::EPOLLET)?;
            listener.is_reading = true;
            self.listener_polled(id);
        }
        Ok(())
    }

    /// There may be users.
    pub fn listener_polled(&mut self, id: Id) {
        if let Some(listener) = self.front.listeners.get_mut(id) {
            if listener.resume_at.is_none() && !std::mem::replace(&mut listener.is_queued, true) {
                self.front.waiting.push_back(id);
            }
        }
    }

    pub fn listener_resumed(&mut self, id: Id) {
        if let Some(listener) = self.front.listeners.get_mut(id) {
            listener.resume_at = None;
            self.listener_polled(id);
        }
    }

    /// A bounded share of those who wait at each bind.
    pub fn accept_users(&mut self, now: Instant) {
        for _ in 0..self.front.waiting.len() {
            let Some(id) = self.front.waiting.pop_front() else { return };
            if let Some(listener) = self.front.listeners.get_mut(id) {
                listener.is_queued = false;
                if (0..BATCH).all(|_| self.accept_user(id, now)) {
                    self.listener_polled(id);
                }
            }
        }
    }

    /// Whether there may be another one.
    fn accept_user(&mut self, id: Id, now: Instant) -> bool {
        let is_full = self.counts.users + self.front.others >= self.front.limit;
        let Some(listener) = self.front.listeners.get_mut(id) else { return false };
        if is_full {
            self.pause_listener(id, "as many users as this worker may have".to_owned(), now);
            return false;
        }
        match listener.accept() {
            Accepted::User(user, source) => {
                let (service, dest) = (listener.service, listener.dest(&user));
                self.user_came(service, user.into(), source, dest, now);
                true
            }
            Accepted::Gave => true,
            Accepted::Nobody => false,
            Accepted::Failed(reason) => {
                self.pause_listener(id, reason, now);
                false
            }
            Accepted::Over => {
                self.remove_listener(id);
                false
            }
        }
    }

    fn pause_listener(&mut self, id: Id, reason: String, now: Instant) {
        if let Some(listener) = self.front.listeners.get_mut(id) {
            self.timers.set(Timer::Listener(id), &mut listener.resume_at, Some(now + EXHAUSTED_PAUSE));
            self.events.push(Event::ListenerWaits { service: listener.service, reason });
        }
    }

    fn remove_listener(&mut self, id: Id) -> Option<Listener> {
        let mut listener = self.front.listeners.remove(id)?;
        self.timers.set(Timer::Listener(id), &mut listener.resume_at, None);
        if listener.is_reading {
            self.poller.remove(listener.socket.as_raw_fd()); // the supervisor holds a duplicate
        }
        Some(listener)
    }

    /// Accept no more. Without `shutdown` the queue is left to whoever holds a duplicate of the socket. With it the bind
    /// is over for everybody (shutdown(2) acts on the socket, close(2) on the descriptor): who is queued is taken first,
    /// since the kernel resets the queue.
    pub fn close_listener(&mut self, id: Id, shutdown: bool, now: Instant) {
        if shutdown {
            // Bounded, and until the first that does not come.
            let _ = (0..CLOSING_BATCH).all(|_| self.accept_user(id, now));
        }
        let Some(listener) = self.remove_listener(id) else { return };
        if shutdown {
            // SAFETY: no pointers. An error means that it was shut down already.
            unsafe { libc::shutdown(listener.socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }

    fn user_came(&mut self, service: Id, socket: OwnedFd, source: SocketAddr, dest: SocketAddr, now: Instant) {
        let conn_id = self.front.next_conn_id;
        self.front.next_conn_id += 1;
        let about = About { conn_id, source: source.to_string().into(), dest: dest.to_string().into() };
        match self.granted(service, &about) {
            Some((conn, stream, head)) => self.ask(Asking::new(service, socket, about, conn, stream, now), head),
            None => {
                self.front.gave_away();
                self.events.push(Event::User(Left { service, socket, about }));
            }
        }
    }

    /// A stream for this user and what it begins with; None where it is for Python to say: nothing is granted, or the
    /// connection is full, since Python gave it users too after it had planned.
    fn granted(&mut self, service_id: Id, about: &About) -> Option<(Id, StreamId, Vec<u8>)> {
        let service = self.front.services.get_mut(&service_id)?;
        while let Some(&(id, _)) = service.plan.grants.front() {
            let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_over) else {
                service.plan.skip();
                continue;
            };
            if conn.users + conn.others >= conn.most_users {
                return None;
            }
            let About { conn_id, source, dest } = about;
            let head = frames::encode_new_conn(&NewConn { conn_id: *conn_id, service: &service.name, source, dest })?;
            let stream = conn.quic.streams().open(Dir::Bi)?;
            if service.plan.take() {
                self.events.push(Event::PlanLow { service: service_id });
            }
            return Some((id, stream, head));
        }
        None
    }

    /// Binds, attempts and relays of users: all of it ends, and what Python did not hear yet.
    pub fn close_front(&mut self) {
        for id in self.front.listeners.ids() {
            self.remove_listener(id);
        }
        self.front.services.clear();
        for id in self.front.askings.ids() {
            self.give_up(id);
        }
        self.end_users();
        for event in &self.events {
            if let Some(socket) = event.socket() {
                sockets::reset_on_close(socket);
            }
        }
        self.events.retain(|event| event.socket().is_none());
    }
}
