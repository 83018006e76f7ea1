//! Streams that Python reads and writes, and relays that it starts.

use std::os::fd::RawFd;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::values::{self, own, timeouts};
use super::Core;
use crate::stream::{stream_id, Read};

#[pymethods]
impl Core {
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
        self.engine.abort_stream(conn, stream_id(stream), values::code(code));
    }

    fn set_priority(&mut self, conn: u64, stream: u64, priority: i32) {
        self.engine.set_priority(conn, stream_id(stream), priority);
    }

    /// Pass a stream and a detached socket on; RELAY_DONE follows.
    fn relay(
        &mut self,
        conn: u64,
        stream: u64,
        fd: RawFd,
        idle_timeout_s: Option<f64>,
        half_closed_timeout_s: f64,
    ) -> PyResult<u64> {
        let fd = own(fd)?;
        let timeouts = timeouts(idle_timeout_s, half_closed_timeout_s)?;
        Ok(self.engine.start_relay(conn, stream_id(stream), fd, timeouts, None, Instant::now())?)
    }

    /// Bytes to the socket and to the stream so far; None when it is over.
    fn relay_bytes(&self, relay: u64) -> Option<(u64, u64)> {
        self.engine.relays.get(relay).map(|relay| (relay.bytes_to_socket, relay.bytes_to_stream))
    }

    fn abort_relay(&mut self, relay: u64) {
        self.engine.end_relay(relay, crate::events::End::Aborted);
    }
}
