//! The Python module `qmux_native`.
//!
//! `Core.poll` runs one bounded turn without the GIL and returns control events only.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use quinn_proto::{Dir, StdSystemTime, VarInt};
use rustc_hash::FxHashMap;
use rustls::pki_types::CertificateDer;
use socket2::SockAddr;

use crate::connection::{Conn, Limits};
use crate::counts::Numbers;
use crate::dial::{Dialer, Serving, Target};
use crate::endpoint::{Endpoint, Policy, Remote};
use crate::engine::Engine;
use crate::relay::Patience;
use crate::stream::{stream_id, Held, Read, Use};
use crate::tickets::Session;
use crate::tls::{self, Credentials};
use crate::udp::Socket;
use crate::verifier::{Check, Identity, Refusal};

/// A century: what `float("inf")` and other very long times become.
const MAX_SECONDS: f64 = 3.2e9;

fn seconds(value: f64) -> PyResult<Duration> {
    match value >= 0.0 {
        true => Ok(Duration::from_secs_f64(value.min(MAX_SECONDS))),
        false => Err(PyValueError::new_err(format!("{value} s is not a duration"))),
    }
}

fn code(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

/// Own a descriptor that Python gave away.
fn own(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("not a descriptor"));
    }
    // SAFETY: the caller detached it from its socket object: nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// RFC 8446 §6.
const INTERNAL_ERROR: u8 = 80;

/// `verify(chain: list[bytes])`: returns who it is, or raises what has an `alert`.
#[derive(Debug)]
struct Verify(Py<PyAny>);

impl Verify {
    fn call(&self, py: Python<'_>, chain: &[CertificateDer<'_>]) -> PyResult<Py<PyAny>> {
        let list = PyList::empty(py);
        for certificate in chain {
            list.append(PyBytes::new(py, certificate))?;
        }
        self.0.call1(py, (list,))
    }
}

impl Check for Verify {
    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, Refusal> {
        Python::attach(|py| match self.call(py, chain) {
            Ok(who) => Ok(Arc::new(who) as Identity),
            Err(error) => {
                let alert = error.value(py).getattr("alert").and_then(|alert| alert.extract::<u8>());
                Err(Refusal { alert: alert.unwrap_or(INTERNAL_ERROR), reason: error.value(py).to_string() })
            }
        })
    }
}

/// Where to connect to.
#[derive(FromPyObject)]
enum Address {
    Tcp(String, u16),
    Unix(Vec<u8>),
}

impl Address {
    fn parse(self) -> PyResult<SockAddr> {
        match self {
            Address::Tcp(host, port) => {
                let ip: IpAddr =
                    host.parse().map_err(|_| PyValueError::new_err(format!("{host} is not an address")))?;
                Ok(SocketAddr::new(ip, port).into())
            }
            Address::Unix(path) => {
                SockAddr::unix(OsString::from_vec(path)).map_err(|error| PyValueError::new_err(error.to_string()))
            }
        }
    }
}

/// A client towards servers of one name: `verify` as `serve` has it. Connections that shall resume each other's sessions
/// share one.
#[pyclass(module = "qmux_native", frozen)]
struct Client(tls::Client);

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (*, chain, key, alpn, verify))]
    fn new(chain: Vec<Vec<u8>>, key: Vec<u8>, alpn: Vec<u8>, verify: Py<PyAny>) -> PyResult<Self> {
        let credentials = Credentials { chain, key, alpn, check: Arc::new(Verify(verify)) };
        tls::Client::new(credentials).map(Self).map_err(PyValueError::new_err)
    }
}

/// A session that a connection may resume, once (RFC 8446 §C.4).
#[pyclass(module = "qmux_native", frozen)]
pub struct Ticket(Mutex<Option<Session>>);

impl Ticket {
    pub fn new(session: Session) -> Self {
        Self(Mutex::new(Some(session)))
    }

    fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The engine of one event loop, which watches `fileno()` and then calls `poll()`.
#[pyclass(module = "qmux_native")]
struct Core {
    engine: Engine,
    started: (Instant, f64),
    failed: bool,
}

impl Core {
    fn seconds_of(&self, at: Instant) -> f64 {
        // The clock of Instant and of time.monotonic() is the same one.
        self.started.1 + at.saturating_duration_since(self.started.0).as_secs_f64()
    }

    fn conn(&self, conn: u64) -> PyResult<&Conn> {
        self.engine.conns.get(conn).ok_or_else(|| PyValueError::new_err("no such connection"))
    }

    fn endpoint(&mut self, endpoint: u64) -> PyResult<&mut Endpoint> {
        self.engine.endpoints.get_mut(endpoint).ok_or_else(|| PyValueError::new_err("no such endpoint"))
    }
}

#[pymethods]
impl Core {
    #[new]
    fn new() -> PyResult<Self> {
        let engine = Engine::new()?;
        Ok(Self { engine, started: (Instant::now(), monotonic()), failed: false })
    }

    /// The epoll descriptor: readable when `poll` has something to do.
    fn fileno(&self) -> RawFd {
        self.engine.fd()
    }

    /// One bounded turn: whether to call again at once, and what happened.
    fn poll<'py>(&mut self, py: Python<'py>) -> PyResult<(bool, Vec<Bound<'py, PyTuple>>)> {
        if self.failed {
            return Err(PyRuntimeError::new_err("the engine failed before"));
        }
        let engine = &mut self.engine;
        let Ok(more) = py.detach(|| catch_unwind(AssertUnwindSafe(|| engine.turn()))) else {
            self.failed = true;
            return Err(PyRuntimeError::new_err("a defect in the native engine; its connections are lost"));
        };
        let events = self.engine.events.drain(..).map(|event| event.into_tuple(py)).collect::<PyResult<Vec<_>>>()?;
        Ok((more, events))
    }

    /// How many endpoints, connections, relays and users on the way to one there are.
    fn counts(&self) -> (usize, usize, usize, usize) {
        let engine = &self.engine;
        (
            engine.endpoints.len(),
            engine.conns.len(),
            engine.relays.len(),
            engine.newcomers.len() + engine.front.askings.len(),
        )
    }

    // --- endpoints ---

    #[pyo3(signature = (*, slot, chain, key, alpn, verify, reset_key, retry_key, idle_timeout_s, keep_alive_s,
        handshake_timeout_s, retry_threshold, max_connections, connection_window_bytes, stream_window_bytes))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn serve(
        &mut self,
        slot: u16,
        chain: Vec<Vec<u8>>,
        key: Vec<u8>,
        alpn: Vec<u8>,
        verify: Py<PyAny>,
        reset_key: Vec<u8>,
        retry_key: Vec<u8>,
        idle_timeout_s: f64,
        keep_alive_s: f64,
        handshake_timeout_s: f64,
        retry_threshold: usize,
        max_connections: usize,
        connection_window_bytes: u64,
        stream_window_bytes: u64,
    ) -> PyResult<u64> {
        let credentials = Credentials { chain, key, alpn, check: Arc::new(Verify(verify)) };
        let limits = Limits {
            idle_timeout: seconds(idle_timeout_s)?,
            keep_alive: seconds(keep_alive_s)?,
            handshake_timeout: seconds(handshake_timeout_s)?,
            max_streams: 1,
            stream_window: stream_window_bytes,
            connection_window: Some(connection_window_bytes),
        };
        let policy =
            Policy { limits, retry_threshold, max_connections, retry_key, wall_clock: Arc::new(StdSystemTime) };
        let endpoint = Endpoint::server(slot, &reset_key, policy, credentials).map_err(PyValueError::new_err)?;
        Ok(self.engine.endpoints.insert(endpoint))
    }

    fn add_socket(&mut self, endpoint: u64, fd: RawFd) -> PyResult<()> {
        let fd = own(fd)?;
        self.endpoint(endpoint)?;
        self.engine.add_port(endpoint, Box::new(Socket::new(fd)?))?;
        Ok(())
    }

    fn set_material(
        &mut self,
        endpoint: u64,
        chain: Vec<Vec<u8>>,
        key: Vec<u8>,
        alpn: Vec<u8>,
        verify: Py<PyAny>,
    ) -> PyResult<()> {
        let credentials = Credentials { chain, key, alpn, check: Arc::new(Verify(verify)) };
        self.endpoint(endpoint)?.set_credentials(credentials).map_err(PyValueError::new_err)
    }

    fn set_live_slots(&mut self, endpoint: u64, slots: Vec<u16>) -> PyResult<()> {
        self.endpoint(endpoint)?.set_live_slots(slots);
        Ok(())
    }

    fn refuse_new(&mut self, endpoint: u64, refuse: bool) -> PyResult<()> {
        self.endpoint(endpoint)?.refuse_new(refuse);
        Ok(())
    }

    /// Counters by the names of `EndpointStats`.
    fn endpoint_stats<'py>(&mut self, py: Python<'py>, endpoint: u64) -> PyResult<Bound<'py, PyDict>> {
        let endpoint = self.endpoint(endpoint)?;
        let stats = &endpoint.stats;
        let counters = [
            ("datagrams_received", stats.datagrams_received),
            ("datagrams_sent", stats.datagrams_sent),
            ("datagrams_invalid", stats.datagrams_invalid),
            ("foreign_packets", endpoint.foreign_packets()),
            ("unknown_connection", endpoint.unknown_connection()),
            ("stateless_resets_sent", stats.stateless_resets_sent),
            ("retries_sent", stats.retries_sent),
            ("initials_refused", stats.initials_refused),
            ("send_blocked", stats.send_blocked),
            ("handshakes_completed", stats.handshakes_completed),
            ("handshakes_resumed", stats.handshakes_resumed),
            ("tickets_refused", endpoint.tickets_refused()),
            ("handshakes_failed", stats.handshakes_failed),
            ("connections", endpoint.open as u64),
            ("half_open", endpoint.half_open as u64),
        ];
        let dict = PyDict::new(py);
        for (name, value) in counters {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Read its sockets no more, and say nothing: for tests, what a killed worker does.
    fn abandon(&mut self, endpoint: u64) -> PyResult<()> {
        let ports = std::mem::take(&mut self.endpoint(endpoint)?.ports);
        ports.into_iter().for_each(|port| drop(self.engine.ports.remove(port)));
        Ok(())
    }

    fn close_endpoint(&mut self, endpoint: u64, code: u64, reason: &[u8]) {
        self.engine.close_endpoint(endpoint, code, reason, Instant::now());
    }

    /// `ticket`: of a connection of the same `client` to this server; used up.
    #[pyo3(signature = (*, fd, host, port, scope_id, client, ticket, server_name, lane, idle_timeout_s, keep_alive_s,
        handshake_timeout_s, max_streams, stream_window_bytes))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn connect(
        &mut self,
        fd: RawFd,
        host: &str,
        port: u16,
        scope_id: u32,
        client: &Client,
        ticket: Option<&Ticket>,
        server_name: &str,
        lane: Option<u16>,
        idle_timeout_s: f64,
        keep_alive_s: f64,
        handshake_timeout_s: f64,
        max_streams: u32,
        stream_window_bytes: u64,
    ) -> PyResult<u64> {
        let fd = own(fd)?;
        let ip: IpAddr = host.parse().map_err(|_| PyValueError::new_err(format!("{host} is not an address")))?;
        let peer = match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope_id).into(),
        };
        let outgoing = client.0.outgoing(ticket.and_then(Ticket::take)).map_err(PyValueError::new_err)?;
        let limits = Limits {
            idle_timeout: seconds(idle_timeout_s)?,
            keep_alive: seconds(keep_alive_s)?,
            handshake_timeout: seconds(handshake_timeout_s)?,
            max_streams,
            stream_window: stream_window_bytes,
            connection_window: None,
        };
        let wire = Box::new(Socket::new(fd)?);
        let remote = Remote { address: peer, server_name, lane };
        self.engine.connect(wire, &remote, outgoing, &limits, Instant::now()).map_err(PyOSError::new_err)
    }

    // --- connections ---

    /// Whether streams can be opened and written before CONNECTED: 0-RTT, which somebody may send again.
    fn may_write_early(&self, conn: u64) -> bool {
        self.engine.conns.get(conn).is_some_and(Conn::may_write_early)
    }

    /// The number of a new stream; None where the peer allows no more.
    fn open_stream(&mut self, conn: u64) -> Option<u64> {
        let conn = self.engine.conns.get_mut(conn).filter(|conn| !conn.is_over)?;
        let stream = conn.quic.streams().open(Dir::Bi)?;
        conn.streams.insert(stream, Use::Held(Held::default()));
        Some(stream.into())
    }

    fn send_datagram(&mut self, conn: u64, data: &[u8]) -> bool {
        let Some(found) = self.engine.conns.get_mut(conn) else { return false };
        let taken = found.quic.datagrams().send(Bytes::copy_from_slice(data), false).is_ok();
        self.engine.mark(conn);
        taken
    }

    fn ping(&mut self, conn: u64) {
        if let Some(found) = self.engine.conns.get_mut(conn) {
            found.quic.ping();
            self.engine.mark(conn);
        }
    }

    fn raise_limits(&mut self, conn: u64, max_streams: u32) {
        if let Some(found) = self.engine.conns.get_mut(conn) {
            found.raise_limits(max_streams);
            self.engine.mark(conn);
        }
    }

    /// CONNECTION_CLOSE; no event of this connection follows.
    fn close(&mut self, conn: u64, code: u64, reason: &[u8]) {
        self.engine.close_connection(conn, code, reason, Instant::now());
    }

    fn peer_address(&self, conn: u64) -> PyResult<(String, u16)> {
        let address = self.conn(conn)?.quic.remote_address();
        Ok((address.ip().to_string(), address.port()))
    }

    /// The first 16 bits of the peer's connection ID in use.
    fn peer_prefix(&self, conn: u64) -> PyResult<Option<u16>> {
        Ok(self.conn(conn)?.peer_prefix)
    }

    fn last_received_at(&self, conn: u64) -> PyResult<f64> {
        Ok(self.seconds_of(self.conn(conn)?.heard_at))
    }

    fn ack_eliciting_outstanding(&self, conn: u64) -> PyResult<bool> {
        Ok(self.conn(conn)?.is_outstanding())
    }

    fn max_datagram_size(&mut self, conn: u64) -> usize {
        self.engine.conns.get_mut(conn).and_then(|conn| conn.quic.datagrams().max_size()).unwrap_or(0)
    }

    /// rtt_s, pto_s, sent_bytes, received_bytes, sent_packets, lost_packets, mtu_bytes, cwnd_bytes.
    #[allow(clippy::type_complexity)] // the fields of ConnectionStats, in order
    fn stats(&self, conn: u64) -> PyResult<(f64, f64, u64, u64, u64, u64, u16, u64)> {
        let quic = &self.conn(conn)?.quic;
        let stats = quic.stats();
        let (path, pto) = (&stats.path, crate::recovery::seen(quic).pto);
        Ok((
            path.rtt.as_secs_f64(),
            pto.as_secs_f64(),
            stats.udp_tx.bytes,
            stats.udp_rx.bytes,
            path.sent_packets,
            path.lost_packets,
            path.current_mtu,
            path.cwnd,
        ))
    }

    /// Streams that this connection still has here: held or relayed.
    fn streams(&self, conn: u64) -> PyResult<usize> {
        Ok(self.conn(conn)?.streams.len())
    }

    // --- streams ---

    /// At most `limit` bytes, `b""` at FIN; None: wait for READABLE or STREAM_ENDED.
    fn read<'py>(&mut self, py: Python<'py>, conn: u64, stream: u64, limit: usize) -> Option<Bound<'py, PyBytes>> {
        match self.engine.read_stream(conn, stream_id(stream), limit) {
            Read::Data(data) => Some(PyBytes::new(py, &data)),
            Read::End => Some(PyBytes::new(py, b"")),
            Read::Wait => None,
        }
    }

    /// Bytes that still wait for room; WRITABLE follows when there are none.
    fn write(&mut self, conn: u64, stream: u64, data: &[u8], finish: bool) -> usize {
        self.engine.write_stream(conn, stream_id(stream), data, finish)
    }

    fn abort_stream(&mut self, conn: u64, stream: u64, code: u64) {
        self.engine.abort_stream(conn, stream_id(stream), crate::python::code(code));
    }

    fn set_priority(&mut self, conn: u64, stream: u64, priority: i32) {
        self.engine.set_priority(conn, stream_id(stream), priority);
    }

    // --- relays ---

    /// Hand a stream and a detached socket over; RELAY_DONE follows.
    fn relay(
        &mut self,
        conn: u64,
        stream: u64,
        fd: RawFd,
        idle_timeout_s: Option<f64>,
        half_closed_timeout_s: f64,
    ) -> PyResult<u64> {
        let fd = own(fd)?;
        let idle = idle_timeout_s.map(seconds).transpose()?;
        let patience = Patience { idle, half_closed: seconds(half_closed_timeout_s)? };
        Ok(self.engine.start_relay(conn, stream_id(stream), fd, patience, None, Instant::now())?)
    }

    /// Bytes to the socket and to the stream so far; None when it is over.
    fn relay_bytes(&self, relay: u64) -> Option<(u64, u64)> {
        self.engine.relays.get(relay).map(|relay| (relay.bytes_to_socket, relay.bytes_to_stream))
    }

    fn abort_relay(&mut self, relay: u64) {
        self.engine.end_relay(relay, crate::events::End::Aborted);
    }

    // --- users whom the engine serves without Python ---

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
        let mut patience = FxHashMap::default();
        for (service, idle_timeout_s, half_closed_timeout_s) in limits {
            let idle = idle_timeout_s.map(seconds).transpose()?;
            let half_closed = seconds(half_closed_timeout_s)?;
            patience.insert(service.into(), Patience { idle, half_closed });
        }
        if let Some(conn) = self.engine.conns.get_mut(conn) {
            conn.serving = Some(Serving { dialer, patience });
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

    // --- users whom a server accepts without Python ---

    /// Users are numbered from here; `limit`: so many may be here at a time, those of Python included.
    fn begin_accepting(&mut self, first_conn_id: u64, limit: u64) {
        self.engine.counts.track();
        self.engine.front.begin(first_conn_id, limit);
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
        let idle = idle_timeout_s.map(seconds).transpose()?;
        let patience = Patience { idle, half_closed: seconds(half_closed_timeout_s)? };
        self.engine.front.set_service(service, name, patience);
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

    /// A listening socket; nobody is accepted before `start_listener`.
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

/// Freed above this, memory goes back to the kernel; below it the next batch uses it again.
const KEPT_BYTES: libc::c_int = 16 << 20;

/// Larger than any buffer here.
const MAPPED_BYTES: libc::c_int = 4 << 20;

/// glibc would map each read buffer anew and zero it page by page: 15 % of a transfer (mallopt(3)).
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; both are documented parameters.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

#[pymodule]
fn qmux_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    keep_freed_memory();
    for (number, name) in crate::events::KINDS.iter().enumerate() {
        module.add(name, number)?;
    }
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Client>()?;
    module.add_class::<Ticket>()?;
    module.add_class::<Core>()
}
