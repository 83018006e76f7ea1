//! rustls for QUIC, with our certificate check (`verifier`).

use std::any::Any;
use std::sync::Arc;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::CipherSuite;

use crate::tickets::{self, ClientTickets, Issued, Store};
use crate::verifier::{with_peer, Check, Peer, Refusal, Verifier};

/// Failures to build a configuration, as messages.
pub type Result<T> = std::result::Result<T, String>;

/// For each handshake: a client uses one for one connection, which brings it the next.
const TICKETS: usize = 1;

/// Our certificate, and the check of the peer's.
#[derive(Clone)]
pub struct Credentials {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
    pub alpn: Vec<u8>,
    pub check: Arc<dyn Check>,
}

impl Credentials {
    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().cloned().map(CertificateDer::from).collect()
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.key.clone()).map_err(|error| format!("the private key: {error}"))
    }
}

/// AES-128 first: the fastest with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// `issued` outlives this configuration: a session of an older one can be resumed.
pub fn server(credentials: Credentials, issued: Arc<Issued>) -> Result<Arc<dyn crypto::ServerConfig>> {
    let provider = provider();
    let (chain, key) = (credentials.certificates(), credentials.key()?);
    let verifier = Verifier::new(credentials.check, provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![credentials.alpn];
    config.session_storage = Arc::new(Store { issued, verifier });
    config.send_tls13_tickets = TICKETS;
    config.max_early_data_size = u32::MAX; // what QUIC prescribes for 0-RTT (RFC 9001 §4.6.1)
    let inner = QuicServerConfig::try_from(config).map_err(|error| error.to_string())?;
    Ok(Arc::new(ServerCrypto(Arc::new(inner))))
}

/// A client's configuration for servers of one name. rustls resumes a session only with the same certificate and
/// verifier objects: connections that share sessions are made from one of these.
pub struct Client(rustls::ClientConfig);

/// For one connection.
pub struct Outgoing {
    pub crypto: Arc<dyn crypto::ClientConfig>,
    /// Where its tickets are kept.
    pub tickets: Arc<ClientTickets>,
}

impl Client {
    pub fn new(credentials: Credentials) -> Result<Self> {
        let provider = provider();
        let (chain, key) = (credentials.certificates(), credentials.key());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Verifier::new(credentials.check, provider));
        let mut config = match chain.is_empty() {
            true => builder.with_no_client_auth(),
            false => builder.with_client_auth_cert(chain, key?).map_err(|error| error.to_string())?,
        };
        config.alpn_protocols = vec![credentials.alpn];
        config.enable_early_data = true;
        Ok(Self(config))
    }

    pub fn outgoing(&self, to_resume: Option<tickets::Session>) -> Result<Outgoing> {
        let tickets = ClientTickets::new(to_resume);
        let mut config = self.0.clone();
        config.resumption = Resumption::store(tickets.clone()).tls12_resumption(Tls12Resumption::Disabled);
        let inner = QuicClientConfig::try_from(config).map_err(|error| error.to_string())?;
        Ok(Outgoing { crypto: Arc::new(ClientCrypto(Arc::new(inner))), tickets })
    }
}

struct ServerCrypto(Arc<QuicServerConfig>);

impl crypto::ServerConfig for ServerCrypto {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> std::result::Result<Keys, UnsupportedVersion> {
        self.0.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(VerifiedSession { inner: self.0.clone().start_session(version, params), peer: None })
    }
}

struct ClientCrypto(Arc<QuicClientConfig>);

impl crypto::ClientConfig for ClientCrypto {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> std::result::Result<Box<dyn Session>, ConnectError> {
        let inner = self.0.clone().start_session(version, server_name, params)?;
        Ok(Box::new(VerifiedSession { inner, peer: None }))
    }
}

/// quinn's session, and the result of our check; `peer_identity` is a `Peer`.
struct VerifiedSession {
    inner: Box<dyn Session>,
    peer: Option<Peer>,
}

impl Session for VerifiedSession {
    fn read_handshake(&mut self, buf: &[u8]) -> std::result::Result<bool, TransportError> {
        let result = with_peer(&mut self.peer, || self.inner.read_handshake(buf));
        match (result, &self.peer) {
            (Err(_), Some(Peer::Rejected(Refusal { alert, reason }))) => {
                let code = TransportErrorCode::crypto(*alert);
                Err(TransportError { code, frame: None, reason: reason.clone() })
            }
            (result, _) => result,
        }
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let peer = self.peer.clone()?;
        if let Peer::Accepted { chain, .. } = &peer {
            // Our check was about this chain; rustls must mean the same one, also where it restored it with a session.
            let vouched = self.inner.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
            if vouched[..] != chain[..] {
                return None;
            }
        }
        Some(Box::new(peer))
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn transport_parameters(&self) -> std::result::Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> std::result::Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}
