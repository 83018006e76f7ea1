//! The relays of an engine: how they start, what wakes them, their scheduling, and how they end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use quinn_proto::StreamId;

use super::share::Pace;
use super::{Relay, Timeouts};
use crate::arena::Id;
use crate::counts::RelayedUser;
use crate::engine::{Engine, Tag};
use crate::events::{End, Event};
use crate::stream::{abort_both, Use};
use crate::timers::Timer;

impl Engine {
    /// Pass a stream and a socket on. Where the stream has ended already, the relay ends at once.
    pub fn start_relay(
        &mut self,
        id: Id,
        stream: StreamId,
        socket: OwnedFd,
        timeouts: Timeouts,
        user: Option<RelayedUser>,
        now: Instant,
    ) -> io::Result<Id> {
        if let Some(user) = &user {
            self.counts.relayed(user);
        }
        let fd = socket.as_raw_fd();
        let mut relay = Relay {
            conn: id,
            stream,
            user,
            socket: Some(socket),
            timeouts,
            active_at: now,
            timer_at: None,
            inward: VecDeque::new(),
            outward: VecDeque::new(),
            outward_bytes: 0,
            can_read: true,
            can_write: true,
            stream_readable: true,
            stream_writable: true,
            hung_up: false,
            failed: false,
            has_urgent: false,
            socket_ended: false,
            fin_queued: false,
            delivered: false,
            stream_ended: false,
            shut: false,
            in_a_row: 0,
            pace: Pace::new(now),
            queued: false,
            bytes_to_socket: 0,
            bytes_to_stream: 0,
        };
        let conn = self.conns.get_mut(id).filter(|conn| !conn.is_closed);
        let over = match conn {
            None => Some(End::ConnectionLost),
            Some(conn) => match conn.streams.remove(&stream) {
                Some(Use::Held(held)) => {
                    relay.inward = held.pending;
                    relay.socket_ended = held.finishing;
                    relay.fin_queued = held.finished;
                    (relay.stream_readable, relay.stream_ended) = (!held.read_ended, held.read_ended);
                    relay.outward_bytes = held.pushback.len();
                    relay.outward.extend(Some(held.pushback).filter(|left| !left.is_empty()));
                    None
                }
                _ => Some(End::StreamReset),
            },
        };
        let relay = self.relays.insert(relay);
        if let Some(end) = over {
            self.end_relay(relay, end);
            return Ok(relay);
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.streams.insert(stream, Use::Relay(relay));
        }
        let edges = libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        if let Err(error) = self.poller.add(fd, Tag::Relay, relay, edges) {
            self.end_relay(relay, End::SocketReset);
            return Err(error);
        }
        self.queue_relay(relay);
        self.arm_relay(relay);
        Ok(relay)
    }

    fn queue_relay(&mut self, id: Id) {
        if let Some(relay) = self.relays.get_mut(id) {
            if !std::mem::replace(&mut relay.queued, true) {
                let queue = if relay.pace.is_bulk() { &mut self.bulk } else { &mut self.ready };
                queue.push_back(id);
            }
        }
    }

    /// epoll reports its socket ready.
    pub fn relay_polled(&mut self, id: Id, flags: i32) {
        let Some(relay) = self.relays.get_mut(id) else { return };
        let closed = flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        relay.can_read |= closed || flags & (libc::EPOLLIN | libc::EPOLLPRI) != 0;
        relay.has_urgent |= flags & libc::EPOLLPRI != 0;
        relay.can_write |= flags & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        relay.hung_up |= closed;
        relay.failed |= flags & libc::EPOLLERR != 0;
        self.queue_relay(id);
    }

    pub fn relay_readable(&mut self, id: Id) {
        if let Some(relay) = self.relays.get_mut(id) {
            relay.stream_readable = !relay.stream_ended;
            self.queue_relay(id);
        }
    }

    pub fn relay_writable(&mut self, id: Id) {
        if let Some(relay) = self.relays.get_mut(id) {
            relay.stream_writable = true;
            self.queue_relay(id);
        }
    }

    pub fn relay_delivered(&mut self, id: Id) {
        let Some(relay) = self.relays.get_mut(id) else { return };
        relay.delivered = true;
        if relay.socket.is_none() {
            self.end_relay(id, End::Finished);
        }
    }

    pub fn relay_stream_reset(&mut self, id: Id) {
        self.end_relay(id, End::StreamReset);
    }

    pub fn relay_lost(&mut self, id: Id) {
        self.end_relay(id, End::ConnectionLost);
    }

    /// One turn of each relay that moves little, and of as many others as their share allows: of one at least.
    pub fn pump_relays(&mut self, now: Instant) {
        for _ in 0..self.ready.len() {
            if let Some(id) = self.ready.pop_front() {
                self.pump_relay(id, now);
            }
        }
        for _ in 0..self.bulk.len() {
            let Some(id) = self.bulk.pop_front() else { return };
            self.pump_relay(id, now);
            if self.share.is_full(now) {
                return;
            }
        }
    }

    fn pump_relay(&mut self, id: Id, now: Instant) {
        let Some(relay) = self.relays.get_mut(id) else { return };
        relay.queued = false;
        let Some(conn) = self.conns.get_mut(relay.conn) else { return };
        let (to_socket, to_stream) = (relay.bytes_to_socket, relay.bytes_to_stream);
        let turn = relay.pump(conn, &mut self.read_buffer, self.share.bytes(now), now);
        let conn = relay.conn;
        let read = (relay.bytes_to_stream - to_stream) as usize;
        let moved = read + (relay.bytes_to_socket - to_socket) as usize;
        if moved > 0 {
            relay.pace.moved(moved, now);
            self.share.moved(relay.pace.is_bulk(), read, now);
        }
        if turn.touched {
            self.mark(conn);
        }
        match turn.end {
            Some(end) => self.end_relay(id, end),
            None => {
                if turn.again {
                    self.queue_relay(id);
                }
                self.arm_relay(id);
            }
        }
    }

    /// Its timer is set once, and checks then whether there was traffic: traffic itself moves no timer.
    fn arm_relay(&mut self, id: Id) {
        let Some(relay) = self.relays.get_mut(id) else { return };
        let Some((at, _)) = relay.deadline() else { return };
        if relay.timer_at.is_none_or(|armed| at < armed) {
            self.timers.set(Timer::Relay(id), &mut relay.timer_at, Some(at));
        }
    }

    pub fn relay_timed_out(&mut self, id: Id, now: Instant) {
        let Some(relay) = self.relays.get_mut(id) else { return };
        relay.timer_at = None;
        match relay.deadline() {
            Some((at, end)) if at <= now => self.end_relay(id, end),
            _ => self.arm_relay(id),
        }
    }

    /// End every relay that the engine started.
    pub fn end_user_relays(&mut self) {
        let ids: Vec<_> = self.relays.iter().filter(|(_, relay)| relay.user.is_some()).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.end_relay(id, End::Aborted));
    }

    /// End a relay, and report it once.
    pub fn end_relay(&mut self, id: Id, end: End) {
        let Some(mut relay) = self.relays.remove(id) else { return };
        self.timers.set(Timer::Relay(id), &mut relay.timer_at, None);
        relay.release(end != End::Finished);
        if let Some(conn) = self.conns.get_mut(relay.conn) {
            let had = conn.streams.remove(&relay.stream).is_some();
            if let Some(code) = end.code().filter(|_| had) {
                abort_both(conn, relay.stream, code);
                self.mark(relay.conn);
            }
        }
        let (to_socket, to_stream) = (relay.bytes_to_socket, relay.bytes_to_stream);
        match relay.user.take() {
            Some(user) => self.user_ended(relay.conn, user, end, to_socket, to_stream),
            None => self.events.push(Event::RelayDone { relay: id, end, to_socket, to_stream }),
        }
    }
}
