//! Our certificate, the check of the peer's, and the sessions that can be resumed.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use rustls::pki_types::CertificateDer;

use crate::tickets::Session;
use crate::tls;
use crate::verifier::{Check, Identity, Refusal};

/// RFC 8446 §6.
const INTERNAL_ERROR: u8 = 80;

/// Calls `verify` of `Credentials`.
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
            Ok(identity) => Ok(Arc::new(identity) as Identity),
            Err(error) => {
                let alert = error.value(py).getattr("alert").and_then(|alert| alert.extract::<u8>());
                Err(Refusal { alert: alert.unwrap_or(INTERNAL_ERROR), reason: error.value(py).to_string() })
            }
        })
    }
}

/// Our certificate and key (DER), and the check of the peer's: `verify(chain: list[bytes])` returns the peer's identity, or
/// raises an exception with an `alert`.
#[pyclass(module = "qmux_native", frozen)]
pub struct Credentials(pub tls::Credentials);

#[pymethods]
impl Credentials {
    #[new]
    #[pyo3(signature = (*, chain, key, alpn, verify))]
    fn new(chain: Vec<Vec<u8>>, key: Vec<u8>, alpn: Vec<u8>, verify: Py<PyAny>) -> Self {
        Self(tls::Credentials { chain, key, alpn, check: Arc::new(Verify(verify)) })
    }
}

/// A client towards servers of one name. Connections that resume each other's sessions share one.
#[pyclass(module = "qmux_native", frozen)]
pub struct Client(pub tls::Client);

#[pymethods]
impl Client {
    #[new]
    fn new(credentials: &Credentials) -> PyResult<Self> {
        tls::Client::new(credentials.0.clone()).map(Self).map_err(PyValueError::new_err)
    }
}

/// A session that a connection may resume, once (RFC 8446 §C.4).
#[pyclass(module = "qmux_native", frozen)]
pub struct Ticket(Mutex<Option<Session>>);

impl Ticket {
    pub fn new(session: Session) -> Self {
        Self(Mutex::new(Some(session)))
    }

    pub fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
