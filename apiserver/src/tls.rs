//! The cluster's own certificate authority, and the TLS of everything that listens or connects.
//!
//! On the first start a CA is made (ECDSA P-256, ten years) and kept in a directory that only its owner may read. It signs the
//! server's certificate, the one that the API server shows to agents, and the certificates of agents. Those that are kept here are
//! replaced when two thirds of their life are over or their names change, while the server runs ([`Served`], [`Shown`]). The dates come
//! from the [`Env`](muster_api::env::Env); the randomness of the keys does not, because a key that a seed could repeat would be none:
//! it is the system's, by way of `ring`.
//!
//! What must never happen here: a private key in a file that others can read, a connection whose other side is not verified
//! against the cluster's CA, or a certificate of an agent that could pass for a server's. Tested below by handshakes.

mod peer;
mod pki;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use peer::{Certified, Peer};
pub(crate) use pki::hex;
pub use pki::{AGENT_LIFE, CLIENT_NAME, Identity, Pki, pin};

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key or certificate could not be made or understood.
    #[error("cannot make or read a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A certificate and key could not be used.
    #[error("cannot use a certificate for TLS")]
    Tls(#[from] rustls::Error),
    /// A file holds something else.
    #[error("{what} is not what it should be")]
    Malformed {
        /// Which.
        what: String,
    },
}

/// The certificate that a listener shows; it can be exchanged while the listener runs.
#[derive(Clone, Debug)]
pub struct Served(Arc<RwLock<Arc<CertifiedKey>>>);

impl Served {
    /// With this certificate, and that of the authority behind it, which a client that knows only its hash needs.
    pub fn new(identity: &Identity, ca_pem: &str) -> Result<Served, PkiError> {
        Ok(Served(Arc::new(RwLock::new(certified(identity, ca_pem)?))))
    }

    /// New connections see this one.
    pub fn exchange(&self, identity: &Identity, ca_pem: &str) -> Result<(), PkiError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(identity, ca_pem)?;
        Ok(())
    }
}

fn certified(identity: &Identity, ca_pem: &str) -> Result<Arc<CertifiedKey>, PkiError> {
    let (mut chain, key) = pair(identity)?;
    chain.extend(certificates(ca_pem)?);
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The configuration for connecting as somebody; it can be exchanged while it is used.
#[derive(Clone, Debug)]
pub struct Shown(Arc<RwLock<Arc<ClientConfig>>>);

impl Shown {
    /// Starts with this one, as made by [`client_config`].
    pub fn new(config: ClientConfig) -> Shown {
        Shown(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// The present one.
    pub fn get(&self) -> Arc<ClientConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New connections use this one.
    pub fn exchange(&self, config: ClientConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS for the API server's listener; both HTTP/2 and HTTP/1.1. Whoever shows a certificate must show one of `ca_pem`.
pub fn listener_config(served: Served, ca_pem: &str) -> Result<ServerConfig, PkiError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider());
    let verifier = verifier.allow_unauthenticated().build();
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = builder
        .with_client_cert_verifier(verifier.map_err(|_| malformed("the CA for clients"))?)
        .with_cert_resolver(Arc::new(served));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for a listener with one certificate. With `client_ca`, whoever connects must show a certificate signed by it.
pub fn server_config(identity: &Identity, client_ca: Option<&str>) -> Result<ServerConfig, PkiError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|_| malformed("the CA for clients"))?)
        }
    };
    let (chain, key) = pair(identity)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for connections to a server whose certificate was signed by `ca_pem`; with `identity`, as that.
pub fn client_config(ca_pem: &str, identity: Option<&Identity>) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots(ca_pem)?);
    Ok(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = pair(identity)?;
            builder.with_client_auth_cert(chain, key)?
        }
    })
}

fn pair(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
    let chain = certificates(&identity.certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|_| malformed("the private key"))?;
    Ok((chain, key))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| malformed("the certificate"))
}

fn roots(ca_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        store.add(certificate)?;
    }
    Ok(store)
}

fn malformed(what: &str) -> PkiError {
    PkiError::Malformed { what: what.to_owned() }
}

#[cfg(test)]
mod tests;
