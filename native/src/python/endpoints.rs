//! Endpoints, and connecting.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use quinn_proto::StdSystemTime;

use super::credentials::{Client, Credentials, Ticket};
use super::values::{own, seconds};
use super::Core;
use crate::endpoint::{Endpoint, Policy, Remote};
use crate::transport;
use crate::udp::Socket;

/// The limits of a connection; a server's are those until `raise_limits`.
#[pyclass(module = "qmux_native", frozen)]
pub struct Limits(transport::Limits);

#[pymethods]
impl Limits {
    /// `connection_window_bytes` None: unlimited.
    #[new]
    #[pyo3(signature = (*, idle_timeout_s, keep_alive_s, handshake_timeout_s, max_streams, stream_window_bytes,
        connection_window_bytes, datagrams))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn new(
        idle_timeout_s: f64,
        keep_alive_s: f64,
        handshake_timeout_s: f64,
        max_streams: u32,
        stream_window_bytes: u64,
        connection_window_bytes: Option<u64>,
        datagrams: bool,
    ) -> PyResult<Self> {
        Ok(Self(transport::Limits {
            idle_timeout: seconds(idle_timeout_s)?,
            keep_alive: seconds(keep_alive_s)?,
            handshake_timeout: seconds(handshake_timeout_s)?,
            max_streams,
            stream_window: stream_window_bytes,
            connection_window: connection_window_bytes,
            datagrams,
        }))
    }
}

#[pymethods]
impl Core {
    #[pyo3(signature = (*, slot, reset_key, retry_key, credentials, limits, retry_threshold, max_connections))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn serve(
        &mut self,
        slot: u16,
        reset_key: Vec<u8>,
        retry_key: Vec<u8>,
        credentials: &Credentials,
        limits: &Limits,
        retry_threshold: usize,
        max_connections: usize,
    ) -> PyResult<u64> {
        let (limits, wall_clock) = (limits.0.clone(), Arc::new(StdSystemTime));
        let policy = Policy { limits, retry_threshold, max_connections, retry_key, wall_clock };
        let endpoint =
            Endpoint::server(slot, &reset_key, policy, credentials.0.clone()).map_err(PyValueError::new_err)?;
        Ok(self.engine.endpoints.insert(endpoint))
    }

    fn add_socket(&mut self, endpoint: u64, fd: RawFd) -> PyResult<()> {
        let fd = own(fd)?;
        self.endpoint(endpoint)?;
        self.engine.add_port(endpoint, Box::new(Socket::new(fd)?))?;
        Ok(())
    }

    #[pyo3(signature = (endpoint, *, credentials, limits, retry_threshold, max_connections))]
    fn reconfigure(
        &mut self,
        endpoint: u64,
        credentials: &Credentials,
        limits: &Limits,
        retry_threshold: usize,
        max_connections: usize,
    ) -> PyResult<()> {
        self.endpoint(endpoint)?
            .reconfigure(limits.0.clone(), retry_threshold, max_connections, credentials.0.clone())
            .map_err(PyValueError::new_err)
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

    /// Close its sockets without sending anything, as a killed worker does: for tests.
    fn abandon(&mut self, endpoint: u64) -> PyResult<()> {
        let ports = std::mem::take(&mut self.endpoint(endpoint)?.ports);
        ports.into_iter().for_each(|port| drop(self.engine.ports.remove(port)));
        Ok(())
    }

    fn close_endpoint(&mut self, endpoint: u64, code: u64, reason: &[u8]) {
        self.engine.close_endpoint(endpoint, code, reason, Instant::now());
    }

    /// `ticket`: of a connection of the same `client` to this server; used up.
    #[pyo3(signature = (*, fd, host, port, scope_id, client, ticket, server_name, lane, limits))]
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
        limits: &Limits,
    ) -> PyResult<u64> {
        let fd = own(fd)?;
        let ip: IpAddr = host.parse().map_err(|_| PyValueError::new_err(format!("{host} is not an address")))?;
        let peer = match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope_id).into(),
        };
        let outgoing = client.0.outgoing(ticket.and_then(Ticket::take)).map_err(PyValueError::new_err)?;
        let wire = Box::new(Socket::new(fd)?);
        let remote = Remote { address: peer, server_name, lane };
        self.engine.connect(wire, &remote, outgoing, &limits.0, Instant::now()).map_err(PyOSError::new_err)
    }
}
