//! User connections that the engine serves without Python: the targets of a client, the plans of a server, and their numbers.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustc_hash::FxHashMap;

use super::values::{own, patience, seconds, Address};
use super::Core;
use crate::connection::Conn;
use crate::counts::Numbers;
use crate::dial::{Dialer, Serving, Target};

#[pymethods]
impl Core {
    /// How many users of a dialer there are, with those who are not relayed yet.
    fn users_of(&self, dialer: u64) -> u64 {
        let serves = |conn: &&Conn| conn.serving.as_ref().is_some_and(|serving| serving.dialer == dialer);
        self.engine.conns.iter().map(|(_, conn)| conn).filter(serves).map(|conn| conn.users).sum()
    }

    /// A client, without targets yet; a stream may take `head_timeout_s` to say what its user wants.
    fn add_dialer(&mut self, head_timeout_s: f64) -> PyResult<u64> {
        let head_timeout = seconds(head_timeout_s)?;
        Ok(self.engine.dialers.insert(Dialer { targets: FxHashMap::default(), head_timeout }))
    }

    fn remove_dialer(&mut self, dialer: u64) {
        self.engine.dialers.remove(dialer);
    }

    /// The users of `service` go there from now on: (host, port) or the path of a Unix socket.
    fn set_target(
        &mut self,
        dialer: u64,
        service: &str,
        tally: u64,
        address: Address,
        timeout_s: f64,
        valid_s: Option<f64>,
    ) -> PyResult<()> {
        let (address, timeout) = (address.parse()?, seconds(timeout_s)?);
        let until = valid_s.map(seconds).transpose()?.map(|valid| Instant::now() + valid);
        let dialer = self.engine.dialers.get_mut(dialer).ok_or_else(|| PyValueError::new_err("no such dialer"))?;
        dialer.targets.insert(service.into(), Target { address, tally, timeout, until });
        Ok(())
    }

    /// New users of every service are Python's.
    fn clear_targets(&mut self, dialer: u64) {
        if let Some(dialer) = self.engine.dialers.get_mut(dialer) {
            dialer.targets.clear();
        }
    }

    /// Streams that the peer opens are users, who go where `dialer` says. `limits`: (service, idle, half-closed).
    fn serve_users(&mut self, conn: u64, dialer: u64, limits: Vec<(String, Option<f64>, f64)>) -> PyResult<()> {
        let mut by_service = FxHashMap::default();
        for (service, idle_timeout_s, half_closed_timeout_s) in limits {
            by_service.insert(service.into(), patience(idle_timeout_s, half_closed_timeout_s)?);
        }
        if let Some(conn) = self.engine.conns.get_mut(conn) {
            conn.serving = Some(Serving { dialer, patience: by_service });
        }
        Ok(())
    }

    /// A place to count the users of one service.
    fn add_tally(&mut self) -> u64 {
        self.engine.counts.add()
    }

    /// Whether USER_ENDED shall tell of every end, or only of those that nobody wanted.
    fn tell_usual_ends(&mut self, tally: u64, tell: bool) {
        self.engine.counts.tell_usual_ends(tally, tell);
    }

    /// USERS_CHANGED comes once, at the next change. To be called before the counts are looked at.
    fn expect_users_changed(&mut self) {
        self.engine.counts.expect_change();
    }

    /// For each tally: relayed now and so far, bytes to sockets and to streams.
    fn tallies(&self) -> HashMap<u64, (u64, u64, u64, u64)> {
        let counts = self.engine.all_counts().into_iter();
        counts.map(|(id, count)| (id, (count.active, count.total, count.to_socket, count.to_stream))).collect()
    }

    // --- user connections that a server accepts without Python ---

    /// Users are numbered from here; `limit`: so many may be here at a time, those of Python included. An attempt that
    /// takes longer than `slow_s` is Python's.
    fn begin_accepting(&mut self, first_conn_id: u64, limit: u64, slow_s: f64) -> PyResult<()> {
        let slow_after = seconds(slow_s)?;
        self.engine.counts.track();
        self.engine.front.begin(first_conn_id, limit, slow_after);
        Ok(())
    }

    /// How many users are Python's.
    fn set_other_users(&mut self, count: u64) {
        self.engine.front.set_others(count);
    }

    /// A service is known by its tally. For relays from now on.
    fn set_service(
        &mut self,
        service: u64,
        name: &str,
        idle_timeout_s: Option<f64>,
        half_closed_timeout_s: f64,
    ) -> PyResult<()> {
        self.engine.front.set_service(service, name, patience(idle_timeout_s, half_closed_timeout_s)?);
        Ok(())
    }

    /// Who gets the next users: (connection, how many). The plan that was is void.
    fn plan(&mut self, service: u64, grants: Vec<(u64, u64)>) {
        self.engine.front.plan(service, grants);
    }

    /// How many users are granted and did not come yet.
    fn unused(&self, service: u64) -> u64 {
        self.engine.front.unused(service)
    }

    /// A listening socket; nothing is accepted before `start_listener`.
    fn add_listener(&mut self, service: u64, fd: RawFd) -> PyResult<u64> {
        Ok(self.engine.add_listener(service, own(fd)?)?)
    }

    fn start_listener(&mut self, listener: u64) -> PyResult<()> {
        Ok(self.engine.start_listener(listener)?)
    }

    /// With `shutdown` for everybody, once those who are queued are taken.
    fn close_listener(&mut self, listener: u64, shutdown: bool) {
        self.engine.close_listener(listener, shutdown, Instant::now());
    }

    /// Users of this core on all connections.
    fn all_users(&self) -> u64 {
        self.engine.counts.users
    }

    /// Of connections and of services those where users came or went since the last call, and how many are there.
    fn user_changes(&mut self) -> (Numbers, Numbers) {
        self.engine.changes()
    }

    /// How many users of this connection are Python's, and how many it may have in all.
    fn limit_users(&mut self, conn: u64, others: u64, most: u64) {
        if let Some(conn) = self.engine.conns.get_mut(conn) {
            (conn.others, conn.most_users) = (others, most);
        }
    }

    /// Binds, attempts and relays of users, all of them.
    fn end_accepting(&mut self) {
        self.engine.close_front();
    }

    /// How many users there are on this connection, with those who are not relayed yet.
    fn users(&self, conn: u64) -> u64 {
        self.engine.conns.get(conn).map_or(0, |conn| conn.users)
    }
}
