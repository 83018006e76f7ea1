//! Python's values as Rust types.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use quinn_proto::VarInt;
use socket2::SockAddr;

use crate::relay::Timeouts;

/// A century: what `float("inf")` and other very long times become.
const MAX_SECONDS: f64 = 3.2e9;

pub fn seconds(value: f64) -> PyResult<Duration> {
    match value >= 0.0 {
        true => Ok(Duration::from_secs_f64(value.min(MAX_SECONDS))),
        false => Err(PyValueError::new_err(format!("{value} s is not a duration"))),
    }
}

/// `qmux.quic.engine.RelayLimits`
pub fn timeouts(idle_timeout_s: Option<f64>, half_closed_timeout_s: f64) -> PyResult<Timeouts> {
    Ok(Timeouts { idle: idle_timeout_s.map(seconds).transpose()?, half_closed: seconds(half_closed_timeout_s)? })
}

pub fn code(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

/// Own a descriptor that Python detached.
pub fn own(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("not a descriptor"));
    }
    // SAFETY: the caller detached it from its socket object: nothing else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Where to connect to.
#[derive(FromPyObject)]
pub enum Address {
    Tcp(String, u16),
    Unix(Vec<u8>),
}

impl Address {
    pub fn parse(self) -> PyResult<SockAddr> {
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
