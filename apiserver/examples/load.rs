//! Puts load on a server over HTTPS and prints what came of it as one line of JSON; `hack/bench` runs it.
//!
//!     load create|get|patch --connections 64 --count 20000 --kubeconfig FILE
//!     load watch --connections 1000 --count 100 --rate 10 --kubeconfig FILE
//!
//! `create` makes tasks of 1.2 KB, `get` reads them, `patch` changes an annotation of each; each connection sends one request after the other over HTTP/1.1, and bytes are compared
//! and not parsed, so that the client costs little of the machine that it shares with the server. `watch` opens so many watches, writes at that rate,
//! and says how late the watches saw each write.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const TASKS: &str = "/apis/muster.dev/v1/namespaces/default/tasks";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What `patch` sends for each task.
const CHANGE: &str = r#"{"metadata":{"annotations":{"changed":"yes"}}}"#;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Work {
    Create,
    Get,
    Patch,
    Watch,
}

#[derive(Clone, Debug, Parser)]
struct Args {
    work: Work,
    /// Requests at once, or watches.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests altogether, or writes that are watched.
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Writes a second; 0 is one after the other.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// What the names begin with.
    #[arg(long, default_value = "load")]
    prefix: String,
    /// Create config maps, which no controller minds, instead of tasks.
    #[arg(long)]
    config_maps: bool,
    #[arg(long)]
    kubeconfig: std::path::PathBuf,
}

/// Where the server is, and how it is asked.
struct Target {
    address: String,
    token: String,
    tls: TlsConnector,
}

impl Target {
    fn read(path: &std::path::Path) -> anyhow::Result<Target> {
        let text = std::fs::read_to_string(path)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let value = line.with_context(|| format!("the kubeconfig has no {name}"))?;
            anyhow::Ok(value.trim().trim_matches('"').to_owned())
        };
        let mut roots = rustls::RootCertStore::empty();
        let authority = STANDARD.decode(field("certificate-authority-data:")?)?;
        roots.add(CertificateDer::from_pem_slice(&authority)?)?;
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Target {
            address: field("server:")?.trim_start_matches("https://").to_owned(),
            token: field("token:")?,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let socket = TcpStream::connect(&self.address).await?;
        socket.set_nodelay(true)?;
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
        let stream = self.tls.connect(ServerName::try_from(host)?, socket).await?;
        Ok(Connection {
            stream,
            read: Vec::with_capacity(64 << 10),
        })
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let (address, token, length) = (&self.address, &self.token, body.len());
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/{kind}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }
}

struct Connection {
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

impl Connection {
    /// Sends a request and reads the answer, which has to have this code.
    async fn call(&mut self, request: &str, code: &str) -> anyhow::Result<()> {
        self.stream.write_all(request.as_bytes()).await?;
        self.read.clear();
        let head = loop {
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the server hung up");
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.read[..head])?.to_ascii_lowercase();
        let length = text
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.lines().next());
        let length: usize = length.context("the answer has no length")?.parse()?;
        while self.read.len() < head + length {
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the server hung up");
        }
        if text.get(9..12) != Some(code) {
            bail!("{}", String::from_utf8_lossy(&self.read));
        }
        Ok(())
    }
}

fn task(name: &str) -> String {
    let filler = "0123456789".repeat(45);
    format!(
        r#"{{"apiVersion":"muster.dev/v1","kind":"Task","metadata":{{"name":"{name}","labels":{{"app":"load"}},"annotations":{{"filler":"{filler}"}}}},"spec":{{"command":["true"],"resources":{{"cpus":"1","memory":"1Gi"}}}}}}"#
    )
}

fn config_map(name: &str) -> String {
    let filler = "0123456789".repeat(100);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","labels":{{"load":"create"}}}},"data":{{"filler":"{filler}"}}}}"#
    )
}

/// Every request by whichever connection is free; seconds altogether, and milliseconds of each.
async fn requests(args: &Args, target: Arc<Target>) -> anyhow::Result<(f64, Vec<f64>)> {
    let next = Arc::new(AtomicUsize::new(0));
    let ready = Arc::new(Barrier::new(args.connections + 1));
    let mut running = JoinSet::new();
    for _ in 0..args.connections {
        let (args, target, next, ready) = (args.clone(), target.clone(), next.clone(), ready.clone());
        running.spawn(async move {
            let mut connection = target.connect().await?;
            ready.wait().await;
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= args.count {
                    return anyhow::Ok(took);
                }
                let name = format!("{}-{number}", args.prefix);
                let (request, code) = match args.work {
                    Work::Create if args.config_maps => {
                        (target.request("POST", CONFIG_MAPS, &config_map(&name)), "201")
                    }
                    Work::Create => (target.request("POST", TASKS, &task(&name)), "201"),
                    Work::Patch => (target.request("PATCH", &format!("{TASKS}/{name}"), CHANGE), "200"),
                    _ => (target.request("GET", &format!("{TASKS}/{name}"), ""), "200"),
                };
                let began = Instant::now();
                connection.call(&request, code).await?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    ready.wait().await;
    let began = Instant::now();
    let mut took = Vec::new();
    while let Some(one) = running.join_next().await {
        took.extend(one??);
    }
    Ok((began.elapsed().as_secs_f64(), took))
}

/// Reads a watch and says when which write was seen.
async fn watch(target: Arc<Target>, seen: mpsc::Sender<(usize, Instant)>, ready: Arc<Barrier>) -> anyhow::Result<()> {
    let mut connection = target.connect().await?;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion=0&labelSelector=load%3Dwatch");
    let request = target.request("GET", &path, "");
    connection.stream.write_all(request.as_bytes()).await?;
    connection.stream.read_buf(&mut connection.read).await?;
    ready.wait().await;
    loop {
        while let Some(end) = find(&connection.read, b"}\n") {
            let now = Instant::now();
            if let Some(start) = find(&connection.read[..end], b"\"number\":\"") {
                let digits = connection.read[start + 10..end].split(|byte| *byte == b'"').next();
                let number = std::str::from_utf8(digits.unwrap_or_default())?.parse()?;
                seen.send((number, now)).await?;
            }
            connection.read.drain(..end + 2);
        }
        ensure!(
            connection.stream.read_buf(&mut connection.read).await? > 0,
            "a watch was closed"
        );
    }
}

/// Seconds of all writes, and milliseconds from each write to each watch.
async fn watches(args: &Args, target: Arc<Target>) -> anyhow::Result<(f64, Vec<f64>)> {
    let (seen, mut sights) = mpsc::channel(1 << 16);
    let ready = Arc::new(Barrier::new(args.connections + 1));
    let mut running = JoinSet::new();
    for _ in 0..args.connections {
        running.spawn(watch(target.clone(), seen.clone(), ready.clone()));
    }
    let mut writer = target.connect().await?;
    ready.wait().await;
    let (began, mut sent) = (Instant::now(), Vec::new());
    let total = args.count * args.connections;
    let writing = async {
        for number in 0..args.count {
            if args.rate > 0.0 {
                tokio::time::sleep_until(began + Duration::from_secs_f64(number as f64 / args.rate)).await;
            }
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{}-{number}","labels":{{"load":"watch"}}}},"data":{{"number":"{number}"}}}}"#,
                args.prefix
            );
            sent.push(Instant::now());
            writer.call(&target.request("POST", CONFIG_MAPS, &body), "201").await?;
        }
        anyhow::Ok(began.elapsed().as_secs_f64())
    };
    let reading = async {
        let mut found = Vec::with_capacity(total);
        while found.len() < total {
            tokio::select! {
                biased;
                Some(ended) = running.join_next() => ended??,
                sight = sights.recv() => found.push(sight.context("every watch has ended")?),
            }
        }
        anyhow::Ok(found)
    };
    let (seconds, found) = tokio::try_join!(writing, reading)?;
    let late = found
        .iter()
        .map(|(number, at)| at.duration_since(sent[*number]).as_secs_f64() * 1e3);
    Ok((seconds, late.collect()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let target = Arc::new(Target::read(&args.kubeconfig)?);
    let (seconds, mut milliseconds) = match args.work {
        Work::Create | Work::Get | Work::Patch => requests(&args, target).await?,
        Work::Watch => watches(&args, target).await?,
    };
    milliseconds.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (milliseconds.len() as f64 * part) as usize;
        milliseconds
            .get(index.min(milliseconds.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    let rate = milliseconds.len() as f64 / seconds;
    println!(
        r#"{{"seconds":{seconds:.3},"rate":{rate:.0},"p50_ms":{:.3},"p99_ms":{:.3},"most_ms":{:.3}}}"#,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}
