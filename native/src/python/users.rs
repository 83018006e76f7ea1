//! User connections that the engine serves without Python: the targets of a client, the plans of a server, and their
//! numbers.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustc_hash::FxHashMap;

use super::values::{own, seconds, timeouts, Address};
use super::Core;
use crate::connection::Conn;
use crate::counts::Numbers;
use crate::dial::{Dialer, Serving, Target};

#[pymethods]
impl Core {
    /// The number of user connections of a dialer, including those that are not relayed yet.
    fn users_of(&self, dialer: u64) -> u64 {
        let serves = |conn: &&Conn| conn.serving.as_ref().is_some_and(|serving| serving.dialer == dialer);
        self.engine.conns.iter().map(|(_, conn)| conn).filter(serves).map(|conn| conn.users).sum()
    }

    /// A client, without targets yet; the head of a stream has to arrive within `head_timeout_s`.
    fn add_dialer(&mut self, head_timeout_s: f64) -> PyResult<u64> {
        let head_timeout = seconds(head_timeout_s)?;
        Ok(self.engine.dialers.insert(Dialer { targets: FxHashMap::default(), head_timeout }))
    }

    fn remove_dialer(&mut self, dialer: u64) {
        self.engine.dialers.remove(dialer);
    }

    /// Dial `address` for user connections of `service` from now on: (host, port) or the path of a Unix socket.
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

    /// Hand off new user connections of every service to Python.
    fn clear_targets(&mut self, dialer: u64) {
        if let Some(dialer) = self.engine.dialers.get_mut(dialer) {
            dialer.targets.clear();
        }
    }

    /// Streams that the peer opens are user connections, dialled with `dialer`. `limits`: (service, idle, half-closed).
    fn serve_users(&mut self, conn: u64, dialer: u64, limits: Vec<(String, Option<f64>, f64)>) -> PyResult<()> {
        let mut by_service = FxHashMap::default();
        for (service, idle_timeout_s, half_closed_timeout_s) in limits {
            by_service.insert(service.into(), timeouts(idle_timeout_s, half_closed_timeout_s)?);
        }
        if let Some(conn) = self.engine.conns.get_mut(conn) {
            conn.serving = Some(Serving { dialer, timeouts: by_service });
        }
        Ok(())
    }

    /// Counters for the user connections of one service.
    fn add_tally(&mut self) -> u64 {
        self.engine.counts.add()
    }

    /// Whether USER_ENDED reports every end, or only unusual ones.
    fn tell_usual_ends(&mut self, tally: u64, tell: bool) {
        self.engine.counts.tell_usual_ends(tally, tell);
    }

    /// USERS_CHANGED is reported once, at the next change. To be called before the counts are read.
    fn expect_users_changed(&mut self) {
        self.engine.counts.expect_change();
    }

    /// For each tally: relays active and since the start, bytes to sockets and to streams.
    fn tallies(&self) -> HashMap<u64, (u64, u64, u64, u64)> {
        let counts = self.engine.all_counts().into_iter();
        counts.map(|(id, count)| (id, (count.active, count.total, count.to_socket, count.to_stream))).collect()
    }

    // --- user connections that a server accepts without Python ---

    /// User connections are numbered from `first_conn_id`; at most `limit` are open at a time, including Python's. An
    /// attempt that takes longer than `slow_s` is handed off to Python.
    fn start_accepting(&mut self, first_conn_id: u64, limit: u64, slow_s: f64) -> PyResult<()> {
        let slow_after = seconds(slow_s)?;
        self.engine.counts.track();
        self.engine.frontend.start(first_conn_id, limit, slow_after);
        Ok(())
    }

    /// How many user connections Python serves.
    fn set_other_users(&mut self, count: u64) {
        self.engine.frontend.set_others(count);
    }

    /// The ID of a service is that of its tally. Timeouts apply to relays that start from now on.
    fn set_service(
        &mut self,
        service: u64,
        name: &str,
        idle_timeout_s: Option<f64>,
        half_closed_timeout_s: f64,
    ) -> PyResult<()> {
        self.engine.frontend.set_service(service, name, timeouts(idle_timeout_s, half_closed_timeout_s)?);
        Ok(())
    }

    /// Which connections get the next user connections: (connection, how many). Replaces the plan.
    fn plan(&mut self, service: u64, grants: Vec<(u64, u64)>) {
        self.engine.frontend.plan(service, grants);
    }

    /// Grants that are not used yet.
    fn unused(&self, service: u64) -> u64 {
        self.engine.frontend.unused(service)
    }

    /// A listening socket; nothing is accepted before `start_listener`.
    fn add_listener(&mut self, service: u64, fd: RawFd) -> PyResult<u64> {
        Ok(self.engine.add_listener(service, own(fd)?)?)
    }

    fn start_listener(&mut self, listener: u64) -> PyResult<()> {
        Ok(self.engine.start_listener(listener)?)
    }

    /// With `shutdown` the bind is closed in every process, once queued connections are accepted.
    fn close_listener(&mut self, listener: u64, shutdown: bool) {
        self.engine.close_listener(listener, shutdown, Instant::now());
    }

    /// User connections that the core serves, on all connections.
    fn all_users(&self) -> u64 {
        self.engine.counts.users
    }

    /// The connections and the services whose number of user connections changed since the last call, with that number.
    fn user_changes(&mut self) -> (Numbers, Numbers) {
        self.engine.changes()
    }

    /// How many user connections Python serves on this connection, and how many it may have in all.
    fn limit_users(&mut self, conn: u64, others: u64, max_users: u64) {
        if let Some(conn) = self.engine.conns.get_mut(conn) {
            (conn.others, conn.max_users) = (others, max_users);
        }
    }

    /// Close all binds, attempts and relays of user connections.
    fn stop_accepting(&mut self) {
        self.engine.close_frontend();
    }

    /// User connections that the core serves on this connection, including those that are not relayed yet.
    fn users(&self, conn: u64) -> u64 {
        self.engine.conns.get(conn).map_or(0, |conn| conn.users)
    }
}
