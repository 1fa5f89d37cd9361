//! The cluster's certificate authority: a directory of keys and certificates, and the signing of new ones.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_api::env::Env;
use muster_api::names;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{PkiError, certificates, malformed};
use crate::auth::User;
use crate::files;

/// The common name of the certificate that the API server shows to agents. They talk to nobody else.
pub const CLIENT_NAME: &str = "muster-apiserver";

const CA_NAME: &str = "muster-ca";
const CA_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);
/// How long the certificates of servers last.
const SERVER_LIFE: SignedDuration = SignedDuration::from_hours(24 * 30);
/// How long the certificates of agents last, unless it is said otherwise.
pub const AGENT_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates begin to be valid so long before they are made, because clocks differ.
pub(super) const SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
    /// When it should be replaced: two thirds of its life are over, or as much as makes sense.
    pub renew_at: Timestamp,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

/// The cluster's certificate authority with its directory.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    key_pem: String,
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
    renew_at: Timestamp,
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
                let pem = authority(env.now()).self_signed(&key)?.pem();
                write(&key_path, &key.serialize_pem())?;
                write(&pem_path, &pem)?;
                (key, pem)
            }
        };
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(authority(env.now()), key);
        Ok(Pki {
            directory: directory.to_owned(),
            ca_pem: pem,
            key_pem,
            issuer,
        })
    }

    /// Puts the authority of another server into a directory that has none, or the same.
    pub fn adopt(directory: &Path, ca_pem: &str, key_pem: &str) -> Result<(), PkiError> {
        files::private_directory(directory).map_err(at(directory))?;
        let pem_path = directory.join("ca.crt");
        if let Some(present) = read(&pem_path)? {
            let same = pin(&present)? == pin(ca_pem)?;
            return if same {
                Ok(())
            } else {
                Err(malformed("the authority that is here already"))
            };
        }
        KeyPair::from_pem(key_pem)?;
        certificates(ca_pem)?;
        write(&directory.join("ca.key"), key_pem)?;
        write(&pem_path, ca_pem)
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's private key, for a server that joins.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The SHA-256 of the authority's certificate.
    pub fn pin(&self) -> Result<[u8; 32], PkiError> {
        pin(&self.ca_pem)
    }

    /// The certificate of the API server: for this machine and for `names` (DNS names or addresses).
    pub fn server(&self, names: &[String], env: &dyn Env) -> Result<Identity, PkiError> {
        let params = leaf(named("muster-server", None), &[ExtendedKeyUsagePurpose::ServerAuth]);
        self.kept("server", params, &with_local(names), env)
    }

    /// The certificate that the API server shows to agents.
    pub fn client(&self, env: &dyn Env) -> Result<Identity, PkiError> {
        let params = leaf(named(CLIENT_NAME, None), &[ExtendedKeyUsagePurpose::ClientAuth]);
        self.kept("apiserver-client", params, &BTreeSet::new(), env)
    }

    /// A certificate of the agent `name` with a key made here, for an agent in the same process.
    pub fn agent(&self, name: &str, env: &dyn Env) -> Result<Identity, PkiError> {
        let names = BTreeSet::from([names::agent_host(name)]);
        self.kept(&format!("agent-{name}"), agent_leaf(name), &names, env)
    }

    /// The certificate of the agent `name` for the key of a request (PEM). Of what the request says, only the key counts.
    pub fn sign_agent(&self, name: &str, csr: &str, life: Duration, env: &dyn Env) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr)?;
        let mut params = agent_leaf(name);
        params.subject_alt_names = vec![alternative(&names::agent_host(name))?];
        let life = SignedDuration::try_from(life).map_err(|_| malformed("the life of certificates"))?;
        valid(&mut params, env.now(), life);
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// The SHA-256 of the public key of a request for a certificate, which must prove that its sender has the private one.
    pub fn key_of_request(csr: &str) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr)?;
        Ok(hex(&Sha256::digest(rcgen::PublicKeyData::der_bytes(
            &request.public_key,
        ))))
    }

    fn kept(
        &self,
        file: &str,
        mut params: CertificateParams,
        names: &BTreeSet<String>,
        env: &dyn Env,
    ) -> Result<Identity, PkiError> {
        let path = |end: &str| self.directory.join(format!("{file}.{end}"));
        let note = read(&path("json"))?.and_then(|text| serde_json::from_str::<Note>(&text).ok());
        let now = env.now();
        if let Some(note) = note.filter(|note| note.names == *names && note.renew_at > now)
            && let (Some(certificate_pem), Some(key_pem)) = (read(&path("crt"))?, read(&path("key"))?)
        {
            return Ok(Identity {
                certificate_pem,
                key_pem,
                renew_at: note.renew_at,
            });
        }
        params.subject_alt_names = names.iter().map(|name| alternative(name)).collect::<Result<_, _>>()?;
        valid(&mut params, now, SERVER_LIFE);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let identity = Identity {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
            renew_at: now + SERVER_LIFE * 2 / 3,
        };
        // Without its note a pair is not used, so a crash in between leaves nothing that does not fit together.
        let note = Note {
            names: names.clone(),
            renew_at: identity.renew_at,
        };
        remove(&path("json"))?;
        write(&path("key"), &identity.key_pem)?;
        write(&path("crt"), &identity.certificate_pem)?;
        let note = serde_json::to_string(&note).expect("a note is plain data");
        write(&path("json"), &note)?;
        Ok(identity)
    }
}

/// The SHA-256 of the first certificate of a PEM text, as DER.
pub fn pin(pem: &str) -> Result<[u8; 32], PkiError> {
    let all = certificates(pem)?;
    let first = all.first().ok_or_else(|| malformed("the certificate"))?;
    Ok(Sha256::digest(first).into())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn leaf(name: DistinguishedName, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    params
}

/// An agent shows one certificate on both ends of its connections.
fn agent_leaf(name: &str) -> CertificateParams {
    let user = User::agent(name);
    let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    leaf(named(&user.name, user.groups.first().map(String::as_str)), &usages)
}

/// The names under which a server of this machine is always reached, and the given ones.
fn with_local(names: &[String]) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    // Only Linux is supported, and there the kernel tells its name in this file.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim().to_owned();
    if names::dns_subdomain_problem(&hostname.to_ascii_lowercase()).is_none() {
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

fn authority(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(CA_NAME, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    valid(&mut params, now, CA_LIFE);
    params
}

fn named(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn valid(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) {
    let at = |time: Timestamp| {
        let seconds = u64::try_from(time.as_second()).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    params.not_before = at(now - SKEW);
    params.not_after = at(now + life);
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
