//! TLS of the node server: it shows a certificate of the cluster's authority and accepts one peer only, the API server.
//!
//! It promises: whoever has no certificate of the authority does not get past the handshake, and whoever has one of another name gets
//! nothing but a closed connection.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The common name of the API server's client certificate.
pub const API_SERVER: &str = "muster-apiserver";

/// Certificates and a key, as PEM.
#[derive(Clone)]
pub struct Material {
    /// The authority: what signs the API server's client certificate.
    pub ca: String,
    /// The server's certificate, with those between it and the authority.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .finish_non_exhaustive()
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A text is not PEM of the right kind.
    #[error("the {what} cannot be read as PEM")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The authority's text has no certificate.
    #[error("there is no certificate of the authority")]
    NoAuthority,
    /// The certificates do not go together.
    #[error("the certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    /// The authority cannot check clients.
    #[error("the authority cannot check clients")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let all: Result<_, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.map_err(|source| MaterialError::Pem { what, source })
}

/// Makes an acceptor of connections; each still has to be checked with [`is_api_server`].
///
/// # Errors
/// [`MaterialError`].
fn acceptor(material: &Material) -> Result<TlsAcceptor, MaterialError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authority", &material.ca)? {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(MaterialError::NoAuthority);
    }
    let chain = certificates("certificate", &material.cert)?;
    let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())
        .map_err(|source| MaterialError::Pem { what: "key", source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Material that never changes.
pub fn fixed(material: Material) -> watch::Receiver<Material> {
    // The receiver keeps the value when the sender is gone.
    watch::Sender::new(material).subscribe()
}

/// Acceptors of the newest material. Material that cannot be used is logged, and what was used before goes on.
pub struct Acceptors {
    material: watch::Receiver<Material>,
    acceptor: TlsAcceptor,
}

impl Acceptors {
    /// With the present material.
    ///
    /// # Errors
    /// [`MaterialError`], if it cannot be used.
    pub fn new(mut material: watch::Receiver<Material>) -> Result<Acceptors, MaterialError> {
        let acceptor = acceptor(&material.borrow_and_update())?;
        Ok(Acceptors { material, acceptor })
    }

    /// The acceptor for the next connection.
    pub fn newest(&mut self) -> TlsAcceptor {
        if self.material.has_changed().unwrap_or(false) {
            match acceptor(&self.material.borrow_and_update()) {
                Ok(acceptor) => self.acceptor = acceptor,
                Err(error) => tracing::error!(%error, "a new certificate cannot be used; the old one is shown"),
            }
        }
        self.acceptor.clone()
    }
}

/// Whether the verified certificate of a peer is the API server's.
pub fn is_api_server(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let mut names = certificate.subject().iter_common_name();
    let first = names.next().and_then(|name| name.as_str().ok());
    first == Some(API_SERVER) && names.next().is_none()
}
