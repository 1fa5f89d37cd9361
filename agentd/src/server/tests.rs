//! The node server over real TLS, on a port that is free.

use std::time::Duration;

use muster_runtime::fake::Behaviour;
use muster_runtime::{ContainerSpec, FakeRuntime, Limits, Rootfs};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod streams;

use super::*;
use crate::devices::NoDevices;
use crate::tls::{API_SERVER, Acceptors, Material, fixed};
use crate::usage::{self, Meter};

const NOW_MS: i64 = 1_800_000_000_000;

/// A wall clock that goes with tokio's.
#[derive(Clone, Copy)]
struct Clock(tokio::time::Instant);

impl Clock {
    fn now_ms(&self) -> i64 {
        NOW_MS + i64::try_from(self.0.elapsed().as_millis()).expect("tests are short")
    }
}

impl Env for Clock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.now_ms()).expect("in range")
    }

    fn uid(&self) -> uuid::Uuid {
        uuid::Uuid::nil()
    }
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("randomness");
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for 127.0.0.1 of this common name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }
}

struct Server {
    authority: Authority,
    address: std::net::SocketAddr,
    fake: FakeRuntime,
    _task: JoinSet<()>,
}

async fn server() -> Server {
    let authority = Authority::new();
    let (cert, key) = authority.issue("a1");
    let material = Material {
        ca: authority.pem.clone(),
        cert,
        key,
    };
    let acceptors = Acceptors::new(fixed(material)).expect("usable");
    let clock = Clock(tokio::time::Instant::now());
    let fake = FakeRuntime::new(move || clock.now_ms());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let meter = Meter::new("a1", Arc::new(fake.clone()), Arc::new(NoDevices), Arc::new(clock));
    let router = router(Arc::new(fake.clone()), Arc::new(clock)).merge(usage::routes(Arc::new(meter)));
    let mut task = JoinSet::new();
    task.spawn(serve(listener, acceptors, router));
    Server {
        authority,
        address,
        fake,
        _task: task,
    }
}

impl Server {
    /// A connection over TLS as the peer of this name, if any.
    async fn connect(&self, authority: &Authority, name: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("a certificate");
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the defaults work")
            .with_root_certificates(roots);
        let config = match name.map(|name| authority.issue(name)) {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM")],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
                )
                .expect("they belong together"),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Asks over TLS as the peer of this name, if any; the whole answer.
    async fn ask(&self, authority: &Authority, name: Option<&str>, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect(authority, name).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&self.authority, Some(API_SERVER), path)
            .await
            .expect("the API server is answered")
    }

    async fn started(&self, name: &str, behaviour: Behaviour) {
        let id = ContainerId::new(name).expect("an id");
        let spec = ContainerSpec {
            argv: vec!["x".to_owned()],
            env: Default::default(),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits::default(),
            labels: Default::default(),
        };
        self.fake.set_behaviours(move |_, _| behaviour.clone());
        self.fake.create(&id, &spec).await.expect("created");
        self.fake.start(&id).await.expect("started");
    }
}

fn lines(answer: &str) -> Vec<Line> {
    let json = answer.lines().filter(|line| line.starts_with('{'));
    json.map(|line| serde_json::from_str(line).expect("a line")).collect()
}

fn texts(answer: &str) -> Vec<String> {
    lines(answer).into_iter().map(|line| line.text).collect()
}

fn printing(count: u64) -> Behaviour {
    let print = |behaviour: Behaviour, index: u64| {
        behaviour.printing(
            Duration::from_millis(index * 10),
            Stream::Stdout,
            &format!("line {index}\n"),
        )
    };
    (0..count).fold(Behaviour::exits(Duration::from_millis(count * 10), 0), print)
}

#[tokio::test]
async fn only_the_api_server_is_answered() {
    let server = server().await;
    assert!(server.get("/healthz").await.ends_with("ok\r\n0\r\n\r\n") || server.get("/healthz").await.ends_with("ok"));
    let agent = server.ask(&server.authority, Some("a2"), "/healthz").await;
    assert!(
        !agent.unwrap_or_default().contains("200 OK"),
        "another name of the same authority"
    );
    let stranger = server.ask(&Authority::new(), Some(API_SERVER), "/healthz").await;
    assert!(
        !stranger.unwrap_or_default().contains("200 OK"),
        "the right name of another authority"
    );
    let nobody = server.ask(&server.authority, None, "/healthz").await;
    assert!(!nobody.unwrap_or_default().contains("200 OK"), "no certificate");
}

#[tokio::test]
async fn a_followed_log_streams_until_the_container_ends() {
    let server = server().await;
    server.started("c1", printing(20)).await;
    let answer = server.get("/v1/logs/c1?follow=true").await;
    let expect: Vec<String> = (0..20).map(|index| format!("line {index}\n")).collect();
    assert_eq!(texts(&answer), expect);
    assert!(
        lines(&answer)
            .iter()
            .all(|line| line.stream == Stream::Stdout && line.time_ms >= NOW_MS)
    );
}

#[tokio::test]
async fn every_position_goes_on_behind_its_line() {
    let server = server().await;
    server.started("c1", printing(8)).await;
    let all = lines(&server.get("/v1/logs/c1?follow=true").await);
    for (index, line) in all.iter().enumerate() {
        let path = format!("/v1/logs/c1?follow=true&after={}", line.position);
        let rest = lines(&server.get(&path).await);
        assert_eq!(rest.len(), all.len() - index - 1, "behind line {index}");
        assert_eq!(
            rest.first().map(|line| &line.text),
            all.get(index + 1).map(|line| &line.text)
        );
    }
}

#[tokio::test]
async fn without_follow_there_is_an_end_even_if_the_container_runs() {
    let server = server().await;
    let print = Behaviour::forever().printing(Duration::ZERO, Stream::Stderr, "one\n");
    server.started("c1", print).await;
    assert_eq!(texts(&server.get("/v1/logs/c1").await), ["one\n"]);
}

#[tokio::test]
async fn a_tail_is_the_last_lines() {
    let server = server().await;
    let print = |behaviour: Behaviour, text: &str| behaviour.printing(Duration::ZERO, Stream::Stdout, text);
    server
        .started(
            "c1",
            ["a\n", "b\n", "c\n"].into_iter().fold(Behaviour::forever(), print),
        )
        .await;
    assert_eq!(texts(&server.get("/v1/logs/c1?tail=2").await), ["b\n", "c\n"]);
}

#[tokio::test]
async fn what_is_not_there_and_what_is_no_id_is_said() {
    let server = server().await;
    assert!(server.get("/v1/logs/c1").await.starts_with("HTTP/1.1 404"));
    assert!(server.get("/v1/logs/..%2Fetc").await.starts_with("HTTP/1.1 400"));
    assert!(server.get("/v1/logs/c1?after=x").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn what_is_used_is_told_to_the_api_server_in_both_forms() {
    let server = server().await;
    let answer = server.get("/v1/usage").await;
    let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
    let usage: muster_api::usage::AgentUsage = serde_json::from_str(body).expect("it is JSON");
    assert_eq!(usage.tasks, []);
    let answer = server.get("/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nmuster_tasks_left_out 0\n"), "{answer}");
}
