//! How a machine becomes one of a cluster, and stays one.
//!
//! An agent makes its key here, and keeps what it was given in one file, which is replaced as a whole. When two thirds of its
//! certificate's life are over it gets the next one, with a new key, without a restart. Promised: no key leaves the machine; a token is
//! sent to nobody but a server of the authority that it pins. What must never happen here: a join on top of another membership.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_agentd::tls::Material;
use muster_api::Timestamp;
use muster_api::env::{Env as _, SystemEnv};
use muster_api::join::{JoinAnswer, JoinRequest, JoinRole, JoinToken, RenewRequest};
use muster_apiserver::files;
use muster_apiserver::launch::{ENCRYPTION_KEY, TOKENS};
use muster_apiserver::tls::{Certified, Pki, pin};
use muster_client::{Client, Endpoints, Shown};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::control::because;
use super::directory::Directory;
use crate::failure::{Failure, Outcome};

/// The file of an agent's data directory.
const FILE: &str = "membership.json";
/// How often the servers of the cluster are looked up.
const SERVERS_EVERY: Duration = Duration::from_secs(30);
/// The longest wait before a renewal is tried again.
const RETRY_MOST: Duration = Duration::from_secs(300);

/// What an agent was given when it joined.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Membership {
    /// Its name.
    pub(super) name: String,
    /// The servers.
    pub(super) endpoints: Vec<String>,
    ca: String,
    certificate: String,
    key: String,
    /// When the certificate came.
    since: Timestamp,
}

fn file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

fn request() -> Outcome<(KeyPair, String)> {
    let failed = |error: rcgen::Error| because("the key", &error);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    // Of a request only the key counts; the server says whose it is.
    let csr = CertificateParams::default().serialize_request(&key).map_err(failed)?;
    let csr = csr.pem().map_err(failed)?;
    Ok((key, csr))
}

impl Membership {
    /// What the directory has.
    pub(super) fn load(directory: &Path) -> Outcome<Option<Membership>> {
        let path = file(directory);
        let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        let Some(text) = files::read_private(&path).map_err(failed)? else {
            return Ok(None);
        };
        let read = serde_json::from_str(&text);
        read.map(Some)
            .map_err(|error| Failure::new(format!("{} is damaged: {error}", path.display())))
    }

    /// Joins under this name.
    pub(super) async fn join(directory: &Path, token: &JoinToken, name: &str, machine: &str) -> Outcome<Membership> {
        let (key, csr) = request()?;
        let answer = ask(token, JoinRole::Agent, name, machine, csr).await?;
        let joined = Membership::from_answer(answer, &key);
        joined.save(directory)?;
        Ok(joined)
    }

    fn from_answer(answer: JoinAnswer, key: &KeyPair) -> Membership {
        Membership {
            name: answer.name,
            endpoints: answer.endpoints,
            ca: answer.ca,
            certificate: answer.certificate,
            key: key.serialize_pem(),
            since: SystemEnv.now(),
        }
    }

    /// Keeps it.
    pub(super) fn save(&self, directory: &Path) -> Outcome<()> {
        let path = file(directory);
        let text = serde_json::to_string_pretty(self).expect("a membership is plain data");
        let written = files::write_private(&path, text.as_bytes());
        written.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    }

    /// When the certificate ends.
    pub(super) fn not_after(&self) -> Timestamp {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok();
        let read = der.as_ref().and_then(Certified::read);
        // What cannot be read has ended.
        read.map_or(self.since, |certified| certified.not_after)
    }

    fn renew_at(&self) -> Timestamp {
        self.since + self.not_after().duration_since(self.since) * 2 / 3
    }

    fn material(&self) -> Material {
        Material {
            ca: self.ca.clone(),
            cert: self.certificate.clone(),
            key: self.key.clone(),
        }
    }

    fn shown(&self) -> Shown {
        Shown {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
        }
    }

    /// The address of this machine that the first server sees, so the one that servers reach it by unless something is in between.
    pub(super) fn own_host(&self) -> Option<String> {
        self.endpoints.iter().find_map(|endpoint| {
            // Nothing is sent: the kernel only looks for a way.
            let (four, six) = (SocketAddr::from(([0; 4], 0)), SocketAddr::from(([0u16; 8], 0)));
            [four, six].iter().find_map(|any| {
                let socket = UdpSocket::bind(any).ok()?;
                socket.connect(endpoint).ok()?;
                Some(socket.local_addr().ok()?.ip().to_string())
            })
        })
    }
}

/// Sends a token to a server that shows the authority that it pins, and asks to be let in.
async fn ask(token: &JoinToken, role: JoinRole, name: &str, machine: &str, csr: String) -> Outcome<JoinAnswer> {
    let client = Client::pinned(token).map_err(|error| because("the join token", &error))?;
    let request = JoinRequest {
        id: token.id.clone(),
        secret: token.secret.clone(),
        role,
        name: name.to_owned(),
        machine: machine.to_owned(),
        csr,
    };
    let mut tried = 0;
    let answer = loop {
        tried += 1;
        match client.join(&request).await {
            // The answer may have been lost; the same request is answered again.
            Err(error) if error.is_retryable() && tried < 5 => sleep(Duration::from_secs(tried)).await,
            answer => break answer.map_err(|error| because("this machine cannot join", &error))?,
        }
    };
    if pin(&answer.ca).ok() != Some(token.pin) {
        return Err(Failure::new(
            "the server that answered has another authority than the join token says",
        ));
    }
    Ok(answer)
}

/// Makes the directory that of one more server of the cluster, unless it is that of one already.
pub(super) async fn join_server(directory: &Directory, token: &JoinToken, name: &str) -> Outcome<bool> {
    let pki = directory.join("pki");
    if pki.join("ca.crt").exists() {
        return Ok(false);
    }
    let (_key, csr) = request()?;
    let answer = ask(token, JoinRole::Server, name, "", csr).await?;
    let secrets = answer
        .secrets
        .ok_or_else(|| Failure::new("the server that answered gave no keys"))?;
    let tokens = directory.join(TOKENS);
    let written = files::write_private(&tokens, secrets.tokens.as_bytes());
    written.map_err(|error| Failure::new(format!("{}: {error}", tokens.display())))?;
    if !secrets.encryption_key.is_empty() {
        let keys = directory.join(ENCRYPTION_KEY);
        let written = files::write_private(&keys, secrets.encryption_key.as_bytes());
        written.map_err(|error| Failure::new(format!("{}: {error}", keys.display())))?;
    }
    // The authority comes last, so a crash before it leaves a directory that joins again.
    Pki::adopt(&pki, &answer.ca, &secrets.ca_key).map_err(|error| because("the certificates", &error))?;
    Ok(true)
}

/// Keeps a membership: renews the certificate, and follows where the servers are.
pub(super) struct Keeper {
    directory: PathBuf,
    membership: Membership,
    /// Speaks to the servers as the agent.
    pub(super) client: Client,
    endpoints: Endpoints,
    shown: watch::Sender<Shown>,
    material: watch::Sender<Material>,
}

impl Keeper {
    /// Of what the directory has.
    pub(super) fn new(directory: &Path, membership: Membership) -> Outcome<Keeper> {
        let failed = |error: muster_client::Error| because("the client", &error);
        let endpoints = Endpoints::new(&membership.endpoints).map_err(failed)?;
        let shown = watch::Sender::new(membership.shown());
        let client = Client::certified(endpoints.clone(), &membership.ca, shown.subscribe()).map_err(failed)?;
        Ok(Keeper {
            directory: directory.to_owned(),
            material: watch::Sender::new(membership.material()),
            membership,
            client,
            endpoints,
            shown,
        })
    }

    /// For the agent's own server.
    pub(super) fn material(&self) -> watch::Receiver<Material> {
        self.material.subscribe()
    }

    /// Until the end.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        let mut retry = Duration::from_secs(1);
        loop {
            let left = self.membership.renew_at().duration_since(SystemEnv.now());
            let left = Duration::try_from(left)
                .unwrap_or_default()
                .max(retry)
                .min(SERVERS_EVERY);
            if stop.run_until_cancelled(sleep(left)).await.is_none() {
                return;
            }
            self.follow().await;
            if self.membership.renew_at() > SystemEnv.now() {
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    retry = Duration::from_secs(1);
                    tracing::info!(agent = self.membership.name, until = %self.membership.not_after(), "the certificate is renewed");
                }
                Err(failure) => {
                    tracing::warn!(%failure, until = %self.membership.not_after(), "the certificate is not renewed; trying again");
                    retry = (retry * 2).min(RETRY_MOST);
                }
            }
        }
    }

    async fn follow(&mut self) {
        // Those who cannot say it now are asked again.
        let Ok(found) = self.client.servers().await else { return };
        let found: Vec<String> = found.servers.into_iter().flat_map(|server| server.endpoints).collect();
        if found.is_empty() || found == self.membership.endpoints {
            return;
        }
        if self.endpoints.replace(&found).is_ok() {
            self.membership.endpoints = found;
            if let Err(failure) = self.membership.save(&self.directory) {
                tracing::warn!(%failure, "where the servers are is not kept");
            }
        }
    }

    async fn renew(&mut self) -> Outcome<()> {
        let (key, csr) = request()?;
        let answer = self.client.renew_certificate(&RenewRequest { csr }).await;
        let answer = answer.map_err(|error| because("the servers", &error))?;
        let endpoints = std::mem::take(&mut self.membership.endpoints);
        self.membership = Membership {
            endpoints,
            ..Membership::from_answer(answer, &key)
        };
        self.membership.save(&self.directory)?;
        self.shown.send_replace(self.membership.shown());
        self.material.send_replace(self.membership.material());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_was_given_is_kept_for_its_owner_alone() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(Membership::load(directory.path()).expect("readable").is_none());
        let (key, _) = request().expect("a key");
        let pki = Pki::open(&directory.path().join("pki"), &SystemEnv).expect("an authority");
        let (_, csr) = request().expect("a request");
        let certificate = pki
            .sign_agent("a1", &csr, Duration::from_secs(300), &SystemEnv)
            .expect("signed");
        let answer = JoinAnswer {
            name: "a1".to_owned(),
            certificate,
            ca: pki.ca_pem().to_owned(),
            endpoints: vec!["127.0.0.1:1".to_owned()],
            secrets: None,
        };
        let joined = Membership::from_answer(answer, &key);
        joined.save(directory.path()).expect("written");
        let kept = Membership::load(directory.path()).expect("readable").expect("kept");
        assert_eq!(
            (kept.name.as_str(), kept.own_host().as_deref()),
            ("a1", Some("127.0.0.1"))
        );
        let life = kept.not_after().duration_since(kept.since).as_secs();
        let first = kept.renew_at().duration_since(kept.since).as_secs();
        assert!(
            (295..=300).contains(&life) && (195..=200).contains(&first),
            "{life} {first}"
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(file(directory.path())).expect("file"));
        assert_eq!(mode & 0o777, 0o600);
    }
}
