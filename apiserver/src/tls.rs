//! The cluster's own certificate authority, and the TLS of everything that listens or connects.
//!
//! On the first start a CA is made (ECDSA P-256, ten years) and kept in a directory that only its owner may read. It signs the
//! server's certificate, the one that the API server shows to agents, and the serving certificates of agents. They are kept
//! and used again until they are about to expire or their names change. The dates come from the [`Env`]; the randomness of
//! the keys does not, because a key that a seed could repeat would be none: it is the system's, by way of `ring`.
//!
//! What must never happen here: a private key in a file that others can read, or a connection whose other side is not
//! verified against the cluster's CA. Tested below by handshakes.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use muster_api::env::Env;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use crate::files;

/// The common name of the certificate that the API server shows to agents. They talk to nobody else.
pub const CLIENT_NAME: &str = "muster-apiserver";

const CA_NAME: &str = "muster-ca";
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 730;
/// A certificate with less than this left is made anew at the next start.
const RENEW_DAYS: i64 = 90;

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

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The cluster's certificate authority with its directory.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// What is noted beside a certificate, so that it need not be taken apart again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    names: BTreeSet<String>,
    not_after: Timestamp,
}

#[derive(Clone, Copy)]
enum Use {
    Server,
    Client,
}

impl Pki {
    /// The authority of the directory, usually `<data-dir>/pki`; made when there is none.
    pub fn open(directory: &Path, env: &dyn Env) -> Result<Pki, PkiError> {
        files::private_directory(directory).map_err(at(directory))?;
        let (key_path, pem_path) = (directory.join("ca.key"), directory.join("ca.crt"));
        let (key, pem) = match (read(&key_path)?, read(&pem_path)?) {
            (Some(key), Some(pem)) => (KeyPair::from_pem(&key)?, pem),
            // The certificate comes last, so a key without one was never used.
            _ => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                let pem = authority(env.now())?.self_signed(&key)?.pem();
                write(&key_path, &key.serialize_pem())?;
                write(&pem_path, &pem)?;
                (key, pem)
            }
        };
        let issuer = Issuer::new(authority(env.now())?, key);
        Ok(Pki {
            directory: directory.to_owned(),
            ca_pem: pem,
            issuer,
        })
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The certificate of the API server: for this machine and for `names` (DNS names or addresses).
    pub fn server(&self, names: &[String], env: &dyn Env) -> Result<Identity, PkiError> {
        self.identity("server", "muster-server", &with_local(names), Use::Server, env)
    }

    /// The certificate that the API server shows to agents.
    pub fn client(&self, env: &dyn Env) -> Result<Identity, PkiError> {
        self.identity("apiserver-client", CLIENT_NAME, &BTreeSet::new(), Use::Client, env)
    }

    /// The serving certificate of the agent `name`, which is reached under `names` (DNS names or addresses).
    pub fn agent(&self, name: &str, names: &[String], env: &dyn Env) -> Result<Identity, PkiError> {
        let mut all = with_local(names);
        all.insert(name.to_owned());
        self.identity(&format!("agent-{name}"), name, &all, Use::Server, env)
    }

    fn identity(
        &self,
        file: &str,
        common_name: &str,
        names: &BTreeSet<String>,
        usage: Use,
        env: &dyn Env,
    ) -> Result<Identity, PkiError> {
        let path = |end: &str| self.directory.join(format!("{file}.{end}"));
        let note = read(&path("json"))?.and_then(|text| serde_json::from_str::<Note>(&text).ok());
        let now = env.now();
        let fresh = |note: &Note| note.names == *names && note.not_after > now + days(RENEW_DAYS);
        if note.as_ref().is_some_and(fresh)
            && let (Some(certificate_pem), Some(key_pem)) = (read(&path("crt"))?, read(&path("key"))?)
        {
            return Ok(Identity {
                certificate_pem,
                key_pem,
            });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = named(common_name);
        params.subject_alt_names = names.iter().map(|name| alternative(name)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match usage {
            Use::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Use::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let not_after = validity(&mut params, now, LEAF_DAYS)?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let identity = Identity {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
        };
        // Without its note a pair is not used, so a crash in between leaves nothing that does not fit together.
        let note = Note {
            names: names.clone(),
            not_after,
        };
        remove(&path("json"))?;
        write(&path("key"), &identity.key_pem)?;
        write(&path("crt"), &identity.certificate_pem)?;
        write(
            &path("json"),
            &serde_json::to_string(&note).expect("a note is plain data"),
        )?;
        Ok(identity)
    }
}

/// TLS for a listener; both HTTP/2 and HTTP/1.1. With `client_ca`, whoever connects must show a certificate signed by it.
pub fn server_config(identity: &Identity, client_ca: Option<&str>) -> Result<ServerConfig, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider).build();
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
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

/// The names under which a server of this machine is always reached, and the given ones.
fn with_local(names: &[String]) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    // Only Linux is supported, and there the kernel tells its name in this file.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim().to_owned();
    if muster_api::names::dns_subdomain_problem(&hostname.to_ascii_lowercase()).is_none() {
        all.insert(hostname);
    }
    all.extend(names.iter().cloned());
    all
}

fn alternative(name: &str) -> Result<SanType, PkiError> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into()?),
    })
}

fn authority(now: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, now, CA_DAYS)?;
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from the day before (clocks differ) for so many days; gives the end.
fn validity(params: &mut CertificateParams, now: Timestamp, count: i64) -> Result<Timestamp, PkiError> {
    let day = |at: Timestamp| at.to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |date: Date| -> Result<_, PkiError> {
        let part = |number: i8| u8::try_from(number).map_err(|_| malformed("the date"));
        Ok(rcgen::date_time_ymd(
            i32::from(date.year()),
            part(date.month())?,
            part(date.day())?,
        ))
    };
    let end = day(now + days(count));
    params.not_before = date(day(now - days(1)))?;
    params.not_after = date(end)?;
    let midnight = end
        .to_zoned(jiff::tz::TimeZone::UTC)
        .map_err(|_| malformed("the date"))?;
    Ok(midnight.timestamp())
}

fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

fn malformed(what: &str) -> PkiError {
    PkiError::Malformed { what: what.to_owned() }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |source| PkiError::File {
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    files::read_private(path).map_err(at(path))
}

fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    files::write_private(path, text.as_bytes()).map_err(at(path))
}

fn remove(path: &Path) -> Result<(), PkiError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};
    use uuid::Uuid;

    use super::*;

    struct At(&'static str);

    impl Env for At {
        fn now(&self) -> Timestamp {
            self.0.parse().unwrap()
        }

        fn uid(&self) -> Uuid {
            Uuid::nil()
        }
    }

    // Handshakes verify dates against the machine's clock, so what is shaken with is made for today.
    use muster_api::env::SystemEnv;

    /// Whether both sides agree, in memory.
    fn shake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<Option<Vec<u8>>, rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.alpn_protocol().map(<[u8]>::to_vec))
    }

    #[test]
    fn a_client_with_the_ca_reaches_the_server_by_every_name() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki"), &SystemEnv).unwrap();
        let server = pki
            .server(&["muster.example.org".to_owned(), "10.0.0.7".to_owned()], &SystemEnv)
            .unwrap();
        for name in ["localhost", "127.0.0.1", "::1", "muster.example.org", "10.0.0.7"] {
            let mut client = client_config(pki.ca_pem(), None).unwrap();
            client.alpn_protocols = vec![b"h2".to_vec()];
            let protocol = shake(client, server_config(&server, None).unwrap(), name).unwrap();
            assert_eq!(protocol.as_deref(), Some(b"h2".as_slice()), "{name}");
        }
        let client = client_config(pki.ca_pem(), None).unwrap();
        assert!(shake(client, server_config(&server, None).unwrap(), "elsewhere").is_err());

        let other = Pki::open(&directory.path().join("other"), &SystemEnv).unwrap();
        let client = client_config(other.ca_pem(), None).unwrap();
        assert!(
            shake(client, server_config(&server, None).unwrap(), "localhost").is_err(),
            "another CA"
        );
    }

    #[test]
    fn an_agent_talks_only_to_clients_of_the_ca() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
        let agent = pki.agent("a1", &[], &SystemEnv).unwrap();
        let config = || server_config(&agent, Some(pki.ca_pem())).unwrap();
        let us = pki.client(&SystemEnv).unwrap();
        assert!(shake(client_config(pki.ca_pem(), Some(&us)).unwrap(), config(), "a1").is_ok());
        assert!(
            shake(client_config(pki.ca_pem(), None).unwrap(), config(), "a1").is_err(),
            "no certificate"
        );
        // A serving certificate is none for clients.
        assert!(shake(client_config(pki.ca_pem(), Some(&agent)).unwrap(), config(), "a1").is_err());
    }

    #[test]
    fn certificates_are_kept_until_they_expire_or_their_names_change() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open(directory.path(), &At("2026-01-01T00:00:00Z")).unwrap();
        let server = |names: &[&str], now: &'static str| {
            let pki = Pki::open(directory.path(), &At(now)).unwrap();
            assert_eq!(pki.ca_pem(), first.ca_pem(), "the CA stays");
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            pki.server(&names, &At(now)).unwrap().certificate_pem
        };
        let one = server(&["x.org"], "2026-01-01T00:00:00Z");
        assert_eq!(server(&["x.org"], "2027-06-01T00:00:00Z"), one);
        let two = server(&["x.org"], "2027-11-01T00:00:00Z");
        assert_ne!(two, one, "about to expire");
        assert_ne!(server(&["y.org"], "2027-11-01T00:00:00Z"), two, "another name");
    }

    #[test]
    fn nobody_else_may_read_the_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pki");
        let pki = Pki::open(&path, &SystemEnv).unwrap();
        pki.server(&[], &SystemEnv).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{entry:?}"
            );
        }
    }
}
