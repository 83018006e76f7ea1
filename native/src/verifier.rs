//! Certificate verification for rustls. `Check` calls `qmux.pki.verify` in Python, which both engines share.
//!
//! rustls can send only a fixed alert for a refusal; a `Peer` carries the alert and the message of our own check.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// The identity of a peer as our check returned it; opaque here.
pub type Identity = Arc<dyn Any + Send + Sync>;

/// Our check of a peer's chain, leaf first.
pub trait Check: Debug + Send + Sync {
    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, Refusal>;
}

/// Why a peer is not accepted.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// RFC 8446 §6.
    pub alert: u8,
    pub reason: String,
}

/// DER, leaf first.
pub type Chain = Arc<[CertificateDer<'static>]>;

/// The result of our check of a peer's chain.
#[derive(Clone)]
pub enum Peer {
    /// `resumed`: checked again for an earlier session; no certificate was sent.
    Accepted {
        identity: Identity,
        chain: Chain,
        resumed: bool,
    },
    Rejected(Refusal),
}

thread_local! {
    // The verifier belongs to a configuration, its result to one session: this passes it on, within one thread.
    static PEER: RefCell<Option<Peer>> = const { RefCell::new(None) };
}

/// Run a step of one session's handshake, and keep in `peer` the result of a check meanwhile.
pub fn with_peer<R>(peer: &mut Option<Peer>, step: impl FnOnce() -> R) -> R {
    PEER.set(peer.take());
    let result = step();
    *peer = PEER.take();
    result
}

/// Runs our check of the chain, and leaves the proof of possession to rustls.
#[derive(Debug)]
pub struct Verifier {
    check: Arc<dyn Check>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub fn new(check: Arc<dyn Check>, provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { check, provider })
    }

    /// In a full handshake.
    fn verify(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
        let chain = std::iter::once(leaf).chain(rest).map(|certificate| certificate.clone().into_owned()).collect();
        let peer = self.judge(chain, false);
        let accepted = matches!(peer, Peer::Accepted { .. });
        PEER.set(Some(peer));
        accepted.then_some(()).ok_or_else(|| Error::General("the certificate is not accepted".into()))
    }

    /// For a session to be resumed. After a refusal a full handshake follows, with another check.
    pub fn accepts_again(&self, chain: &Chain) -> bool {
        let peer = self.judge(chain.clone(), true);
        let accepted = matches!(peer, Peer::Accepted { .. });
        PEER.set(accepted.then_some(peer));
        accepted
    }

    /// The chain of the peer whose handshake runs at this moment, once it is accepted.
    pub fn accepted() -> Option<Chain> {
        PEER.with_borrow(|peer| match peer {
            Some(Peer::Accepted { chain, .. }) => Some(chain.clone()),
            _ => None,
        })
    }

    fn judge(&self, chain: Chain, resumed: bool) -> Peer {
        match self.check.check(&chain) {
            Ok(identity) => Peer::Accepted { identity, chain, resumed },
            Err(refusal) => Peer::Rejected(refusal),
        }
    }
}

/// What both of rustls' traits require alike. TLS 1.2 is not offered, and a peer that uses it is refused.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("QUIC needs TLS 1.3".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, rest).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>, // the callable knows it
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, rest).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}
