//! User connections that the engine serves without Python: what is counted of them, for there is no event of each one.
//!
//! Python makes a tally for each service and names it where it hands work over. A connection counts its users, those too
//! who are not relayed yet. `USERS_CHANGED` says once that something is new, and not again until Python asks for it.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arena::{Arena, Id};
use crate::engine::Engine;
use crate::events::{End, Event};

/// Users of one service.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Count {
    /// Relayed now.
    pub active: u64,
    /// Relayed so far, those included.
    pub total: u64,
    /// Bytes that were relayed.
    pub to_socket: u64,
    pub to_stream: u64,
}

/// One service, for as long as the engine lives.
struct Tally {
    /// The bytes of relays that have ended.
    count: Count,
    /// Users of a server who wait for a client's answer.
    asking: u64,
    tells_usual_ends: bool,
}

/// Who is relayed, where Python has no part in it.
pub struct User {
    pub tally: Id,
    pub conn_id: u64,
    pub source: Box<str>,
}

#[derive(Default)]
pub struct Counts {
    tallies: Arena<Tally>,
    /// Users on all connections.
    pub users: u64,
    changed: Option<Changed>,
    /// `USERS_CHANGED` was told, and nobody has asked for another one.
    told: bool,
}

/// Where users came or went since somebody asked.
#[derive(Default)]
struct Changed {
    conns: FxHashSet<Id>,
    tallies: FxHashSet<Id>,
}

/// How many users a connection or a tally has, those included who are not relayed yet.
pub type Numbers = Vec<(Id, u64)>;

impl End {
    /// Both ends reached FIN, or one of them reset the connection: it went as somebody wanted it.
    fn is_usual(self) -> bool {
        matches!(self, End::Finished | End::SocketReset | End::StreamReset)
    }
}

impl Counts {
    pub fn add(&mut self) -> Id {
        self.tallies.insert(Tally { count: Count::default(), asking: 0, tells_usual_ends: false })
    }

    pub fn tell_usual_ends(&mut self, tally: Id, tell: bool) {
        if let Some(tally) = self.tallies.get_mut(tally) {
            tally.tells_usual_ends = tell;
        }
    }

    /// What changes from now on is told again.
    pub fn expect_change(&mut self) {
        self.told = false;
    }

    /// Remember from now on where users come and go, for `changes`.
    pub fn track(&mut self) {
        self.changed.get_or_insert_default();
    }

    /// So many more, or fewer, wait for a client's answer.
    pub fn asking(&mut self, tally: Id, change: i64) {
        if let Some(counted) = self.tallies.get_mut(tally) {
            counted.asking = counted.asking.saturating_add_signed(change);
        }
        self.changed(tally);
    }

    fn changed(&mut self, tally: Id) {
        if let Some(changed) = &mut self.changed {
            changed.tallies.insert(tally);
        }
    }

    /// A relay of `user` has begun.
    pub fn relayed(&mut self, user: &User) {
        if let Some(tally) = self.tallies.get_mut(user.tally) {
            tally.count.active += 1;
            tally.count.total += 1;
        }
    }
}

impl Engine {
    /// So many users more, or fewer, are on this connection.
    pub fn users_changed(&mut self, conn: Id, change: i64) {
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.users = conn.users.saturating_add_signed(change);
        }
        self.counts.users = self.counts.users.saturating_add_signed(change);
        if let Some(changed) = &mut self.counts.changed {
            changed.conns.insert(conn);
        }
        if !std::mem::replace(&mut self.counts.told, true) {
            self.events.push(Event::UsersChanged);
        }
    }

    /// The relay of `user` has ended; with it the user is gone from `conn`.
    pub fn user_ended(&mut self, conn: Id, user: User, end: End, to_socket: u64, to_stream: u64) {
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

    /// Of connections and of tallies, those where users came or went since the last call.
    pub fn changes(&mut self) -> (Numbers, Numbers) {
        let changed = self.counts.changed.as_mut().map(std::mem::take).unwrap_or_default();
        let on = |&id: &Id| self.conns.get(id).map(|conn| (id, conn.users));
        let of = |&id: &Id| self.counts.tallies.get(id).map(|tally| (id, tally.asking + tally.count.active));
        (changed.conns.iter().filter_map(on).collect(), changed.tallies.iter().filter_map(of).collect())
    }

    /// Every tally as it is now, with the bytes of the relays that run.
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
