//! What one turn reports to Python: control events only, as tuples that start with their kind.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
#[cfg(feature = "python")]
use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
#[cfg(feature = "python")]
use pyo3::prelude::*;
#[cfg(feature = "python")]
use pyo3::types::{PyBytes, PyTuple};

use crate::arena::Id;
use crate::counts::RelayedUser;
use crate::listener::{UserConn, UserSocket};
#[cfg(feature = "python")]
use crate::python::Ticket;
#[cfg(feature = "python")]
use crate::relay::SOCKET_RESET;
use crate::tickets::Session;
use crate::verifier::Identity;

/// How a connection ended: the names of `qmux.quic.engine.CloseKind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub kind: &'static str,
    pub code: u64,
    pub message: String,
}

/// How a relay ended: the names of `qmux.quic.engine.RelayEnd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    SocketReset,
    StreamReset,
    ConnectionLost,
    IdleTimeout,
    HalfClosedTimeout,
    Aborted,
}

impl End {
    pub fn name(self) -> &'static str {
        match self {
            End::Finished => "finished",
            End::SocketReset => "socket_reset",
            End::StreamReset => "stream_reset",
            End::ConnectionLost => "connection_lost",
            End::IdleTimeout => "idle_timeout",
            End::HalfClosedTimeout => "half_closed_timeout",
            End::Aborted => "aborted",
        }
    }
}

/// The result of requesting a user connection from a client. `Open`: it has not answered, or not as usual, and the
/// stream is Python's; `Reset`: it ended the stream without an answer; `Lost`: the QUIC connection is closed.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Open(u64),
    Refused { code: String, reason: String },
    Reset(u64),
    Lost,
}

#[cfg(feature = "python")]
impl Outcome {
    /// The stream of an open attempt, or the code of a refusal; and the reason.
    fn into_parts(self) -> (Option<u64>, Option<String>, String) {
        match self {
            Outcome::Open(stream) => (Some(stream), None, String::new()),
            Outcome::Refused { code, reason } => (None, Some(code), reason),
            // The service was connected and reset at once: the end of the stream overtook the answer. No byte of the user
            // was sent, so it is the refusal that it would have been a moment earlier (`RefuseCode.RESET`).
            Outcome::Reset(code) if code == u64::from(SOCKET_RESET) => (None, Some("reset".to_owned()), String::new()),
            Outcome::Reset(code) => (None, None, format!("stream ended by peer with code {code:#x}")),
            Outcome::Lost => (None, None, "the connection was lost".to_owned()),
        }
    }
}

/// Of user connections that a server accepts: `Unplanned` has no grant; `HandedOff` was requested at `started` and not
/// answered as usual; `UserReset` was reset by the user meanwhile. `PlanLow`: most grants are used. `ListenerPaused`:
/// accepting pauses for a moment.
pub enum Event {
    Accepted { endpoint: Id, conn: Id, peer: SocketAddr },
    Connected { conn: Id, identity: Option<Identity>, resumed: bool, early_data: bool },
    StreamOpened { conn: Id, stream: u64, dialled_for: Duration },
    Readable { conn: Id, stream: u64 },
    Writable { conn: Id, stream: u64 },
    StreamEnded { conn: Id, stream: u64, code: u64 },
    Datagram { conn: Id, data: Bytes },
    Closed { conn: Id, reason: Reason },
    RelayDone { relay: Id, end: End, to_socket: u64, to_stream: u64 },
    UsersChanged,
    UserEnded { user: RelayedUser, end: End },
    Ticket { conn: Id, ticket: Session },
    Unplanned(UserSocket),
    HandedOff { user: UserSocket, conn: Id, started: Instant, outcome: Outcome },
    UserReset { service: Id, user: UserConn },
    PlanLow { service: Id },
    ListenerPaused { service: Id, reason: String },
}

/// Names of the kinds, exported by the module in this order.
pub const KINDS: [&str; 17] = [
    "ACCEPTED",
    "CONNECTED",
    "STREAM_OPENED",
    "READABLE",
    "WRITABLE",
    "STREAM_ENDED",
    "DATAGRAM",
    "CLOSED",
    "RELAY_DONE",
    "USERS_CHANGED",
    "USER_ENDED",
    "TICKET",
    "UNPLANNED",
    "HANDED_OFF",
    "USER_RESET",
    "PLAN_LOW",
    "LISTENER_PAUSED",
];

impl Event {
    /// The socket that is passed on with it.
    pub fn socket(&self) -> Option<&OwnedFd> {
        match self {
            Event::Unplanned(user) | Event::HandedOff { user, .. } => Some(&user.socket),
            _ => None,
        }
    }
}

#[cfg(feature = "python")]
impl Event {
    pub fn into_tuple(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        match self {
            Event::Accepted { endpoint, conn, peer } => {
                (0, conn, endpoint, peer.ip().to_string(), peer.port()).into_pyobject(py)
            }
            Event::Connected { conn, identity, resumed, early_data } => {
                let identity = identity
                    .and_then(|identity| identity.downcast_ref::<Py<PyAny>>().map(|identity| identity.clone_ref(py)));
                (1, conn, identity, resumed, early_data).into_pyobject(py)
            }
            Event::StreamOpened { conn, stream, dialled_for } => {
                (2, conn, stream, dialled_for.as_secs_f64()).into_pyobject(py)
            }
            Event::Readable { conn, stream } => (3, conn, stream).into_pyobject(py),
            Event::Writable { conn, stream } => (4, conn, stream).into_pyobject(py),
            Event::StreamEnded { conn, stream, code } => (5, conn, stream, code).into_pyobject(py),
            Event::Datagram { conn, data } => (6, conn, PyBytes::new(py, &data)).into_pyobject(py),
            Event::Closed { conn, reason } => (7, conn, reason.kind, reason.code, reason.message).into_pyobject(py),
            Event::RelayDone { relay, end, to_socket, to_stream } => {
                (8, relay, end.name(), to_socket, to_stream).into_pyobject(py)
            }
            Event::UsersChanged => (9,).into_pyobject(py),
            Event::UserEnded { user, end } => {
                (10, user.tally, user.conn_id, &*user.source, end.name()).into_pyobject(py)
            }
            Event::Ticket { conn, ticket } => (11, conn, Ticket::new(ticket)).into_pyobject(py),
            Event::Unplanned(UserSocket { service, socket, user }) => {
                let tuple = (12, service, socket.as_raw_fd(), user.conn_id, &*user.source, &*user.dest);
                transferred(socket, tuple.into_pyobject(py))
            }
            Event::HandedOff { user: UserSocket { service, socket, user }, conn, started, outcome } => {
                let (fd, waited_s) = (socket.as_raw_fd(), started.elapsed().as_secs_f64());
                let (stream, code, reason) = outcome.into_parts();
                let user = (user.conn_id, &*user.source, &*user.dest);
                transferred(socket, (13, service, fd, user, conn, waited_s, stream, code, reason).into_pyobject(py))
            }
            Event::UserReset { service, user } => (14, service, user.conn_id, &*user.source).into_pyobject(py),
            Event::PlanLow { service } => (15, service).into_pyobject(py),
            Event::ListenerPaused { service, reason } => (16, service, reason).into_pyobject(py),
        }
    }
}

/// Python owns the socket, unless there was no memory for the tuple.
#[cfg(feature = "python")]
fn transferred<'py>(socket: OwnedFd, tuple: PyResult<Bound<'py, PyTuple>>) -> PyResult<Bound<'py, PyTuple>> {
    if tuple.is_ok() {
        let _ = socket.into_raw_fd();
    }
    tuple
}
