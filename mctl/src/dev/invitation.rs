//! A directory that lets an agent in: for machines that share files with the server, where nobody has to carry a token over.
//!
//! The server writes it; the agent is known by the bearer token in it, and its certificate ends with the directory's next writing. What
//! must never happen here: a key that others can read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use muster_agentd::tls::{Material, fixed};
use muster_api::env::SystemEnv;
use muster_api::join::{JoinToken, JoinTokenError};
use muster_api::names;
use muster_apiserver::files;
use muster_apiserver::kubeconfig::{self as written, Access};
use muster_client::Client;
use tokio::sync::watch;

use super::control::{ControlPlane, because};
use super::directory::Directory;
use crate::failure::{Failure, Outcome};
use crate::kubeconfig;

/// What `--join` takes.
#[derive(Clone, Debug)]
pub enum Join {
    /// `mctl token create`.
    Token(JoinToken),
    /// Made by `mctl server --agent NAME`.
    Directory(PathBuf),
}

impl FromStr for Join {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Join, JoinTokenError> {
        if Path::new(text).is_dir() {
            return Ok(Join::Directory(PathBuf::from(text)));
        }
        text.parse().map(Join::Token)
    }
}

/// Puts what an agent needs into a directory of its own.
pub(super) fn write(
    control: &ControlPlane,
    directory: &Directory,
    agent: &str,
    host: Option<&String>,
) -> Outcome<PathBuf> {
    let (name, reached_by) = agent.split_once('=').unwrap_or((agent, ""));
    if let Some(problem) = names::dns_subdomain_problem(name) {
        return Err(Failure::new(format!("--agent {agent}: {problem}")));
    }
    let identity = control.pki().agent(name, &SystemEnv);
    let identity = identity.map_err(|error| because("the certificates", &error))?;
    let server = match (host, control.access.server.rsplit_once(':')) {
        (Some(host), Some((_, port))) => format!("https://{host}:{port}"),
        _ => control.access.server.clone(),
    };
    let path = directory.join("join").join(name);
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    files::private_directory(&path).map_err(failed)?;
    let ca = control.pki().ca_pem();
    for (file, text) in [
        ("name", name),
        ("host", reached_by),
        ("ca.crt", ca),
        ("agent.crt", &identity.certificate_pem),
        ("agent.key", &identity.key_pem),
    ] {
        files::write_private(&path.join(file), text.as_bytes()).map_err(failed)?;
    }
    let access = Access {
        server,
        ca_pem: ca.to_owned(),
        token: control.agent_token(name)?,
    };
    written::write(&path.join("kubeconfig"), &access).map_err(|error| because("the kubeconfig", &error))?;
    Ok(path)
}

/// What such a directory says.
pub(super) struct Invitation {
    pub(super) name: String,
    /// Where the agent's own server listens, and the host that it is reached by.
    pub(super) listen: (SocketAddr, Option<String>),
    pub(super) tls: watch::Receiver<Material>,
    pub(super) client: Client,
}

/// Reads it.
pub(super) async fn read(directory: &Path, listen: SocketAddr) -> Outcome<Invitation> {
    let read = |file: &str| {
        let path = directory.join(file);
        let text = std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
        text.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    let host = Some(read("host")?).filter(|host| !host.is_empty());
    let listen = match &host {
        None if listen.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        _ => listen,
    };
    let choice = kubeconfig::Choice {
        file: Some(directory.join("kubeconfig")),
        context: None,
    };
    let client = Client::from_config(kubeconfig::load(&choice).await?);
    Ok(Invitation {
        name: read("name")?,
        listen: (listen, host),
        tls: fixed(Material {
            ca: read("ca.crt")?,
            cert: read("agent.crt")?,
            key: read("agent.key")?,
        }),
        client: client.map_err(|error| because("the client", &error))?,
    })
}
