//! The Python module `qmux_native`.
//!
//! `Core.poll` runs one bounded turn without the GIL and returns control events only. The other calls on it are in the
//! modules below, by what they are about.

mod connections;
mod credentials;
mod endpoints;
mod streams;
mod users;
mod values;

use std::os::fd::RawFd;
use std::panic;
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::connection::Conn;
use crate::endpoint::Endpoint;
use crate::engine::Engine;

pub use credentials::Ticket;
use credentials::{Client, Credentials};
use endpoints::Limits;
use values::monotonic;

/// The engine of one event loop, which watches `fileno()` and then calls `poll()`.
#[pyclass(module = "qmux_native")]
struct Core {
    engine: Engine,
    started: (Instant, f64),
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
        Ok(Self { engine, started: (Instant::now(), monotonic()) })
    }

    /// The epoll descriptor: readable when `poll` has something to do.
    fn fileno(&self) -> RawFd {
        self.engine.fd()
    }

    /// One bounded turn: whether to call again at once, and what happened.
    fn poll<'py>(&mut self, py: Python<'py>) -> PyResult<(bool, Vec<Bound<'py, PyTuple>>)> {
        let engine = &mut self.engine;
        let more = py.detach(|| engine.turn());
        let events = self.engine.events.drain(..).map(|event| event.into_tuple(py)).collect::<PyResult<Vec<_>>>()?;
        Ok((more, events))
    }

    /// How many endpoints, connections, relays, and user connections that are not relayed yet there are.
    fn counts(&self) -> (usize, usize, usize, usize) {
        let engine = &self.engine;
        (
            engine.endpoints.len(),
            engine.conns.len(),
            engine.relays.len(),
            engine.requests.len() + engine.frontend.attempts.len(),
        )
    }
}

/// Call `end(text)` after a panic, with its message and place. It must end the process: what the engine has is unusable
/// then, and nothing else would notice.
#[pyfunction]
fn on_panic(end: Py<PyAny>) {
    panic::set_hook(Box::new(move |info| {
        let text = info.to_string();
        Python::attach(|py| {
            if let Err(error) = end.call1(py, (text,)) {
                error.write_unraisable(py, None);
            }
        });
    }));
}

/// Panic, for tests of `on_panic`.
#[pyfunction]
fn panic_now() {
    panic!("as asked");
}

/// Freed above this, memory goes back to the kernel; below it the next batch uses it again.
const KEPT_BYTES: libc::c_int = 16 << 20;

/// Larger than any buffer here.
const MAPPED_BYTES: libc::c_int = 4 << 20;

/// glibc would map each read buffer again and zero it page by page: 15 % of a transfer (mallopt(3)).
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
    module.add_function(wrap_pyfunction!(on_panic, module)?)?;
    module.add_function(wrap_pyfunction!(panic_now, module)?)?;
    module.add_class::<Client>()?;
    module.add_class::<Credentials>()?;
    module.add_class::<Limits>()?;
    module.add_class::<Ticket>()?;
    module.add_class::<Core>()
}
