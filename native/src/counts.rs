//! Counters of the user connections that the engine serves without Python, since there is no event for each of them.
//!
//! Python adds a tally for each service and names it where it passes work on. A QUIC connection counts its user
//! connections, including those that are not relayed yet. `USERS_CHANGED` reports a change once, and not again until
//! Python requests it (`expect_users_changed`).

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arena::{Arena, Id};
use crate::engine::Engine;
use crate::events::{End, Event};

/// The relayed user connections of one service.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Count {
    /// Relayed now.
    pub active: u64,
    /// Relayed since the start, including the active ones.
    pub total: u64,
    /// Bytes relayed.
    pub to_socket: u64,
    pub to_stream: u64,
}

/// One service, until the engine ends.
struct Tally {
    /// The bytes of relays that have ended.
    count: Count,
    /// At a server: user connections that wait for a client's answer.
    waiting: u64,
    tells_usual_ends: bool,
}

/// The user connection of a relay that the engine started.
pub struct RelayedUser {
    pub tally: Id,
    pub conn_id: u64,
    pub source: Box<str>,
}

#[derive(Default)]
pub struct Counts {
    tallies: Arena<Tally>,
    /// User connections on all QUIC connections.
    pub users: u64,
    changed: Option<Changed>,
    /// `USERS_CHANGED` was reported, and Python has not requested another one.
    reported: bool,
}

/// Where user connections were opened or closed since the last `changes`.
#[derive(Default)]
struct Changed {
    conns: FxHashSet<Id>,
    tallies: FxHashSet<Id>,
}

/// The number of user connections of each QUIC connection or tally, including those that are not relayed yet.
pub type Numbers = Vec<(Id, u64)>;

impl End {
    /// Both ends sent FIN, or one of them reset the connection: one of the ends wanted it.
    fn is_usual(self) -> bool {
        matches!(self, End::Finished | End::SocketReset | End::StreamReset)
    }
}

impl Counts {
    pub fn add(&mut self) -> Id {
        self.tallies.insert(Tally { count: Count::default(), waiting: 0, tells_usual_ends: false })
    }

    pub fn tell_usual_ends(&mut self, tally: Id, tell: bool) {
        if let Some(tally) = self.tallies.get_mut(tally) {
            tally.tells_usual_ends = tell;
        }
    }

    /// Report the next change again.
    pub fn expect_change(&mut self) {
        self.reported = false;
    }

    /// Remember from now on where user connections are opened and closed, for `changes`.
    pub fn track(&mut self) {
        self.changed.get_or_insert_default();
    }

    /// Adjust how many wait for a client's answer.
    pub fn waiting(&mut self, tally: Id, change: i64) {
        if let Some(counted) = self.tallies.get_mut(tally) {
            counted.waiting = counted.waiting.saturating_add_signed(change);
        }
        self.changed(tally);
    }

    fn changed(&mut self, tally: Id) {
        if let Some(changed) = &mut self.changed {
            changed.tallies.insert(tally);
        }
    }

    /// The relay of `user` has started.
    pub fn relayed(&mut self, user: &RelayedUser) {
        if let Some(tally) = self.tallies.get_mut(user.tally) {
            tally.count.active += 1;
            tally.count.total += 1;
        }
    }
}

impl Engine {
    /// Adjust the number of user connections on this QUIC connection.
    pub fn users_changed(&mut self, conn: Id, change: i64) {
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.users = conn.users.saturating_add_signed(change);
        }
        self.counts.users = self.counts.users.saturating_add_signed(change);
        if let Some(changed) = &mut self.counts.changed {
            changed.conns.insert(conn);
        }
        if !std::mem::replace(&mut self.counts.reported, true) {
            self.events.push(Event::UsersChanged);
        }
    }

    /// The relay of `user` has ended; `conn` has one user connection less.
    pub fn user_ended(&mut self, conn: Id, user: RelayedUser, end: End, to_socket: u64, to_stream: u64) {
        self.counts.changed(user.tally);
        if let Some(tally) = self.counts.tallies.get_mut(user.tally) {
            let count = &mut tally.count;
            count.active -= 1;
            count.to_socket += to_socket;
            count.to_stream += to_stream;
            if tally.tells_usual_ends || !end.is_usual() {
                self.events.push(Event::UserEnded { user, end });
            }
        }
        self.users_changed(conn, -1);
    }

    /// The connections and tallies whose numbers changed since the last call.
    pub fn changes(&mut self) -> (Numbers, Numbers) {
        let changed = self.counts.changed.as_mut().map(std::mem::take).unwrap_or_default();
        let on = |&id: &Id| self.conns.get(id).map(|conn| (id, conn.users));
        let of = |&id: &Id| self.counts.tallies.get(id).map(|tally| (id, tally.waiting + tally.count.active));
        (changed.conns.iter().filter_map(on).collect(), changed.tallies.iter().filter_map(of).collect())
    }

    /// Every tally, including the bytes of active relays.
    pub fn all_counts(&self) -> FxHashMap<Id, Count> {
        let mut counts: FxHashMap<_, _> = self.counts.tallies.iter().map(|(id, tally)| (id, tally.count)).collect();
        for (_, relay) in self.relays.iter() {
            if let Some(count) = relay.user.as_ref().and_then(|user| counts.get_mut(&user.tally)) {
                count.to_socket += relay.bytes_to_socket;
                count.to_stream += relay.bytes_to_stream;
            }
        }
        counts
    }
}
