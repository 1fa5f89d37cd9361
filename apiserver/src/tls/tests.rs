//! Handshakes between everything that listens and everything that connects.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use jiff::Timestamp;
use muster_api::env::Env;
use muster_api::names::agent_host;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use uuid::Uuid;

use super::*;
use crate::auth::User;

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
    let agent = pki.agent("a1", &SystemEnv).unwrap();
    let config = || server_config(&agent, Some(pki.ca_pem())).unwrap();
    let us = pki.client(&SystemEnv).unwrap();
    let host = &agent_host("a1");
    assert!(shake(client_config(pki.ca_pem(), Some(&us)).unwrap(), config(), host).is_ok());
    assert!(
        shake(client_config(pki.ca_pem(), None).unwrap(), config(), host).is_err(),
        "no certificate"
    );
    // A serving certificate is none for clients.
    let server = pki.server(&[], &SystemEnv).unwrap();
    assert!(shake(client_config(pki.ca_pem(), Some(&server)).unwrap(), config(), host).is_err());
}

#[test]
fn the_certificate_of_an_agent_is_of_no_use_to_a_listener_of_the_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
    let agent = pki.agent("localhost", &SystemEnv).unwrap();
    for name in ["localhost", "127.0.0.1", "muster.example.org"] {
        let client = client_config(pki.ca_pem(), None).unwrap();
        assert!(
            shake(client, server_config(&agent, None).unwrap(), name).is_err(),
            "{name}"
        );
    }
}

/// A request for a certificate that asks for more than it is given.
fn request(key: &KeyPair) -> String {
    let mut params = CertificateParams::new(vec!["muster.example.org".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn of_a_request_only_the_key_counts() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let life = Duration::from_secs(3600);
    let certificate_pem = pki.sign_agent("a1", &request(&key), life, &SystemEnv).unwrap();
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap();
    let read = Certified::read(&der).unwrap();
    assert_eq!(read.user, User::agent("a1"));
    let left = read.not_after.duration_since(SystemEnv.now()).as_secs();
    assert!((3500..=3600).contains(&left), "{left}");
    let identity = Identity {
        certificate_pem,
        key_pem: key.serialize_pem(),
        renew_at: SystemEnv.now(),
    };
    let us = pki.client(&SystemEnv).unwrap();
    let reach = |name: &str| {
        let client = client_config(pki.ca_pem(), Some(&us)).unwrap();
        shake(client, server_config(&identity, Some(pki.ca_pem())).unwrap(), name)
    };
    assert!(reach(&agent_host("a1")).is_ok());
    assert!(reach("muster.example.org").is_err() && reach(&agent_host("a2")).is_err());

    let served = Served::new(&pki.server(&[], &SystemEnv).unwrap(), pki.ca_pem()).unwrap();
    let listener = || listener_config(served.clone(), pki.ca_pem()).unwrap();
    for shown in [None, Some(&identity), Some(&us)] {
        let client = client_config(pki.ca_pem(), shown).unwrap();
        assert!(shake(client, listener(), "localhost").is_ok());
    }
    let other = Pki::open(&directory.path().join("other"), &SystemEnv).unwrap();
    let theirs = other.client(&SystemEnv).unwrap();
    let client = client_config(pki.ca_pem(), Some(&theirs)).unwrap();
    assert!(shake(client, listener(), "localhost").is_err(), "of another authority");
    assert!(pki.sign_agent("a1", "-----BEGIN", life, &SystemEnv).is_err());
}

#[test]
fn a_listener_shows_the_newest_certificate_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
    let served = Served::new(&pki.server(&[], &SystemEnv).unwrap(), pki.ca_pem()).unwrap();
    let config = listener_config(served.clone(), pki.ca_pem()).unwrap();
    let reach = |name: &str| shake(client_config(pki.ca_pem(), None).unwrap(), config.clone(), name);
    assert!(reach("new.example.org").is_err());
    let newer = pki.server(&["new.example.org".to_owned()], &SystemEnv).unwrap();
    served.exchange(&newer, pki.ca_pem()).unwrap();
    assert!(reach("new.example.org").is_ok());
}

#[test]
fn an_authority_is_taken_over_once() {
    let directory = tempfile::tempdir().unwrap();
    let one = Pki::open(&directory.path().join("one"), &SystemEnv).unwrap();
    let other = Pki::open(&directory.path().join("other"), &SystemEnv).unwrap();
    let path = directory.path().join("two");
    Pki::adopt(&path, one.ca_pem(), one.key_pem()).unwrap();
    Pki::adopt(&path, one.ca_pem(), one.key_pem()).unwrap();
    assert!(Pki::adopt(&path, other.ca_pem(), other.key_pem()).is_err());
    let two = Pki::open(&path, &SystemEnv).unwrap();
    assert_eq!(two.pin().unwrap(), one.pin().unwrap());
    let server = two.server(&[], &SystemEnv).unwrap();
    let client = client_config(one.ca_pem(), None).unwrap();
    assert!(shake(client, server_config(&server, None).unwrap(), "localhost").is_ok());
}

#[test]
fn certificates_are_kept_until_two_thirds_of_their_life_or_their_names_change() {
    let directory = tempfile::tempdir().unwrap();
    let first = Pki::open(directory.path(), &At("2026-01-01T00:00:00Z")).unwrap();
    let server = |names: &[&str], now: &'static str| {
        let pki = Pki::open(directory.path(), &At(now)).unwrap();
        assert_eq!(pki.ca_pem(), first.ca_pem(), "the CA stays");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        pki.server(&names, &At(now)).unwrap().certificate_pem
    };
    let one = server(&["x.org"], "2026-01-01T00:00:00Z");
    assert_eq!(server(&["x.org"], "2026-01-20T00:00:00Z"), one);
    let two = server(&["x.org"], "2026-01-22T00:00:00Z");
    assert_ne!(two, one, "about to expire");
    assert_ne!(server(&["y.org"], "2026-01-22T00:00:00Z"), two, "another name");
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
