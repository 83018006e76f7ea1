//! One epoll descriptor, and the turn behind it: sockets, timers, new user connections, relays, in that order, each a
//! bounded share.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::arena::{Arena, Id};
use crate::connection::Conn;
use crate::counts::Counts;
use crate::dial::{Dialer, Request};
use crate::endpoint::Endpoint;
use crate::events::Event;
use crate::listener::Frontend;
use crate::relay::{ReadBuffer, Relay, Share};
use crate::timers::{Timer, Timers};
use crate::udp::{Buffers, Port, Sent, Wire};

/// A turn without an event ends after this: the event loop has other things to do, too.
const TURN: Duration = Duration::from_millis(2);

/// What this many steps in a row have to send is sent together, unless there is nothing more to gather: it saves 3 to 6
/// % of the cost of small requests.
const GATHERED_STEPS: usize = 8;

const EPOLL_EVENTS: usize = 256;

/// Receive calls on one socket before the others have their turn, and before the data is acknowledged: the sender's
/// window must not stay full for long.
const RECEIVE_CALLS: usize = 1;

/// After this much was received in a turn, it is acknowledged before it is written to sockets: the sender continues
/// meanwhile.
const ACKNOWLEDGED_AT_ONCE_BYTES: usize = 64 << 10;

/// After a turn that came so late, what arrived meanwhile is read before timers run: a packet may clear a timer that is
/// due as well. The event loop, or the machine, stood still.
const PAUSE: Duration = Duration::from_millis(20);

/// Steps for that, at most: a flood must not hold the timers back.
const CATCH_UP_STEPS: usize = 64;

/// Send calls for one connection before the others have their turn.
const SEND_CALLS: usize = 8;

/// Kind of a descriptor, in the three high bits of epoll's data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Timer = 0,
    Port = 1,
    Relay = 2,
    Request = 3,
    Listener = 4,
}

/// An `arena::Id` is below it.
const TAG_SHIFT: u32 = 61;

/// epoll(7).
pub struct Poller(OwnedFd);

impl Poller {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Closing the last descriptor of a socket takes it out again. Where another process holds a duplicate, it stays in
    /// (epoll(7), "Questions and answers", 6), and its number cannot be added again: `remove` it first.
    pub fn add(&self, fd: RawFd, tag: Tag, id: Id, flags: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: flags as u32, u64: ((tag as u64) << TAG_SHIFT) | id };
        // SAFETY: `event` lives through the call.
        match unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Take a descriptor out that stays open, here or in another process.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: the event is ignored (epoll_ctl(2)).
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
        debug_assert_eq!(result, 0, "it was added");
    }

    /// What is ready now; never waits.
    fn ready(&self, events: &mut [libc::epoll_event; EPOLL_EVENTS]) -> usize {
        // SAFETY: the pointer is to as many events as the count says.
        let count =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), EPOLL_EVENTS as libc::c_int, 0) };
        usize::try_from(count).unwrap_or(0) // interrupted: the next turn looks again
    }
}

pub struct Engine {
    pub poller: Poller,
    pub timers: Timers,
    pub endpoints: Arena<Endpoint>,
    pub ports: Arena<Port>,
    pub conns: Arena<Conn>,
    pub relays: Arena<Relay>,
    pub counts: Counts,
    /// The targets of clients.
    pub dialers: Arena<Dialer>,
    pub requests: Arena<Request>,
    /// The user connections of a server.
    pub frontend: Frontend,
    /// Ports that may have datagrams.
    readable: Vec<Id>,
    /// Connections that may have something to send.
    pub dirty: VecDeque<Id>,
    /// Relays that may have bytes to move: those that move little, and those that move much.
    pub ready: VecDeque<Id>,
    pub bulk: VecDeque<Id>,
    /// Requests whose head may be there.
    pub requests_ready: VecDeque<Id>,
    pub events: Vec<Event>,
    /// None while received datagrams are processed.
    pub buffers: Option<Box<Buffers>>,
    pub read_buffer: ReadBuffer,
    pub share: Share,
    /// When the last step was.
    stepped_at: Option<Instant>,
    /// Steps for which timers may still wait until everything that arrived is read.
    catching_up: usize,
    /// Datagrams to be sent: of connections, and of none.
    outgoing: Vec<u8>,
    pub answer: Vec<u8>,
}

impl Engine {
    pub fn new() -> io::Result<Self> {
        let engine = Self {
            poller: Poller::new()?,
            timers: Timers::new()?,
            endpoints: Arena::default(),
            ports: Arena::default(),
            conns: Arena::default(),
            relays: Arena::default(),
            counts: Counts::default(),
            dialers: Arena::default(),
            requests: Arena::default(),
            frontend: Frontend::default(),
            readable: Vec::new(),
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            bulk: VecDeque::new(),
            requests_ready: VecDeque::new(),
            events: Vec::new(),
            buffers: Some(Box::new(Buffers::new())),
            read_buffer: ReadBuffer::new(),
            share: Share::default(),
            stepped_at: None,
            catching_up: 0,
            outgoing: Vec::new(),
            answer: Vec::new(),
        };
        engine.poller.add(engine.timers.fd(), Tag::Timer, 0, libc::EPOLLIN | libc::EPOLLET)?;
        Ok(engine)
    }

    pub fn fd(&self) -> RawFd {
        self.poller.0.as_raw_fd()
    }

    pub fn add_port(&mut self, endpoint: Id, wire: Box<dyn Wire>) -> io::Result<Id> {
        let fd = wire.fd();
        let id = self.ports.insert(Port::new(wire, endpoint));
        let edges = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET;
        if let Some(Err(error)) = fd.map(|fd| self.poller.add(fd, Tag::Port, id, edges)) {
            self.ports.remove(id);
            return Err(error);
        }
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.ports.push(id);
        }
        self.readable.push(id);
        Ok(id)
    }

    /// One bounded turn; whether there is more to do at once. `events` has what is reported to Python.
    pub fn turn(&mut self) -> bool {
        let started = Instant::now();
        let mut now = started;
        let mut unsent = 0;
        loop {
            let polled = self.gather(now);
            unsent += 1;
            if polled == 0 || unsent == GATHERED_STEPS || self.share.is_full(now) || !self.events.is_empty() {
                self.transmit(now);
                unsent = 0;
            }
            let busy = self.is_busy();
            if (polled == 0 && !busy) || !self.events.is_empty() {
                self.timers.arm();
                return busy;
            }
            now = Instant::now();
            if now - started > TURN {
                self.transmit(now);
                self.timers.arm();
                return true;
            }
        }
    }

    /// One step, at the time `now`; how many descriptors were ready.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn step(&mut self, now: Instant) -> usize {
        let polled = self.gather(now);
        self.transmit(now);
        polled
    }

    /// A step without the sending: what is added meanwhile may share the datagrams.
    fn gather(&mut self, now: Instant) -> usize {
        if self.stepped_at.replace(now).is_some_and(|before| now - before > PAUSE) {
            self.catching_up = CATCH_UP_STEPS;
        }
        let polled = self.poll_descriptors(now);
        let received = self.receive_all(now);
        let has_read_all = self.readable.is_empty() && polled < EPOLL_EVENTS;
        self.catching_up = if has_read_all { 0 } else { self.catching_up.saturating_sub(1) };
        if self.catching_up == 0 {
            self.run_timers(now);
        }
        self.process_dirty(now);
        if received >= ACKNOWLEDGED_AT_ONCE_BYTES {
            self.transmit(now);
        }
        self.serve_requests(now);
        self.accept_users(now);
        self.read_answers(now);
        self.pump_relays(now);
        polled
    }

    /// Whether another step would find something to do at the same time.
    pub fn is_busy(&self) -> bool {
        let queues = [&self.ready, &self.bulk, &self.dirty, &self.requests_ready];
        !self.readable.is_empty() || self.frontend.is_busy() || queues.iter().any(|queue| !queue.is_empty())
    }

    fn poll_descriptors(&mut self, now: Instant) -> usize {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EPOLL_EVENTS];
        let count = self.poller.ready(&mut events);
        for event in &events[..count] {
            let (flags, data) = (event.events as i32, event.u64);
            let id = data & ((1 << TAG_SHIFT) - 1);
            match data >> TAG_SHIFT {
                tag if tag == Tag::Port as u64 => self.port_polled(id, flags),
                tag if tag == Tag::Relay as u64 => self.relay_polled(id, flags),
                tag if tag == Tag::Request as u64 => self.request_polled(id, now),
                tag if tag == Tag::Listener as u64 => self.listener_polled(id),
                _ => self.timers.fired(),
            }
        }
        count
    }

    /// epoll reports its socket ready.
    pub fn port_polled(&mut self, id: Id, flags: i32) {
        let Some(port) = self.ports.get_mut(id) else { return };
        if flags & (libc::EPOLLIN | libc::EPOLLERR) != 0 {
            port.readable = true;
            if !self.readable.contains(&id) {
                self.readable.push(id);
            }
        }
        if flags & (libc::EPOLLOUT | libc::EPOLLERR) != 0 && !port.writable {
            port.writable = true;
            if let Some((transmit, data)) = port.blocked.take() {
                if matches!(port.send(&transmit, &data), Sent::Blocked) {
                    port.blocked = Some((transmit, data));
                    return;
                }
            }
            for waiting in std::mem::take(&mut port.waiting) {
                if let Some(conn) = self.conns.get_mut(waiting) {
                    conn.waits_for_port = false;
                    self.mark(waiting);
                }
            }
        }
    }

    /// Receive on every readable socket; how many bytes.
    fn receive_all(&mut self, now: Instant) -> usize {
        let mut received = 0;
        for id in std::mem::take(&mut self.readable) {
            received += self.receive(id, RECEIVE_CALLS, now);
            if self.ports.get(id).is_some_and(|port| port.readable) {
                self.readable.push(id);
            }
        }
        received
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Quic(id) => {
                    if let Some(conn) = self.conns.get_mut(id) {
                        conn.quic_at = None;
                        conn.quic.handle_timeout(now);
                        self.mark(id);
                    }
                }
                Timer::Handshake(id) => self.handshake_timed_out(id, now),
                Timer::Ping(id) => self.ping_handshake(id, now),
                Timer::Relay(id) => self.relay_timed_out(id, now),
                Timer::Request(id) => self.request_timed_out(id, now),
                Timer::Listener(id) => self.listener_resumed(id),
                Timer::Attempts => self.check_attempts(now),
            }
        }
    }

    /// Events of the connections that received something, before their relays move bytes.
    fn process_dirty(&mut self, now: Instant) {
        for index in 0..self.dirty.len() {
            let id = self.dirty[index];
            if let Some(conn) = self.conns.get_mut(id) {
                conn.packets_received(now);
            }
            self.connection_events(id, now);
        }
    }

    fn transmit(&mut self, now: Instant) {
        self.share.sent();
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else { return };
            if let Some(conn) = self.conns.get_mut(id) {
                conn.dirty = false;
                self.transmit_connection(id, now);
            }
        }
    }

    /// Send what one connection has, a bounded part of it, and handle the events of that.
    pub fn transmit_connection(&mut self, id: Id, now: Instant) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.announce_stream_credit();
        }
        let mut more = true;
        for _ in 0..SEND_CALLS {
            more = self.transmit_once(id, now);
            if !more {
                break;
            }
        }
        self.connection_events(id, now); // sending leads to events, such as new connection IDs
        let Some(conn) = self.conns.get_mut(id) else { return };
        let at = conn.quic.poll_timeout();
        self.timers.set(Timer::Quic(id), &mut conn.quic_at, at);
        if conn.quic.is_drained() || (conn.is_closed && conn.is_client()) {
            self.forget_connection(id);
        } else if more {
            self.mark(id);
        }
    }

    /// One send call; whether there may be more.
    fn transmit_once(&mut self, id: Id, now: Instant) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(port) = self.ports.get_mut(conn.port) else { return false };
        if !port.writable {
            if !std::mem::replace(&mut conn.waits_for_port, true) {
                port.waiting.push(id);
            }
            return false;
        }
        self.outgoing.clear();
        let segments = port.segments(conn.quic.current_mtu());
        let Some(transmit) = conn.quic.poll_transmit(now, segments, &mut self.outgoing) else { return false };
        conn.sent(&self.outgoing, now);
        let sent = port.send(&transmit, &self.outgoing);
        let endpoint_id = conn.endpoint;
        let Some(endpoint) = self.endpoints.get_mut(endpoint_id) else { return false };
        match sent {
            Sent::Done => {
                let datagrams = transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size));
                endpoint.stats.datagrams_sent += datagrams as u64;
            }
            Sent::Blocked => {
                endpoint.stats.send_blocked += 1;
                port.blocked = Some((transmit, std::mem::take(&mut self.outgoing)));
            }
            // Lost: QUIC sends it again. A probe of a larger size than the interface takes ends here, too.
            Sent::Failed(error) => {
                endpoint.stats.send_blocked += 1;
                self.network_failed(endpoint_id, &error, now);
            }
        }
        true
    }
}
