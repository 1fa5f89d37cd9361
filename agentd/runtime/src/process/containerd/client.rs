//! Calls to containerd: every one in our namespace, with a deadline, and with an error that says what was being done.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::Client as Services;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status};

use crate::Error;
use crate::limits::CONTAINERD_CALL_DEADLINE;

/// The largest message that is taken: a list of some thousand containers with their specs.
const MESSAGE_MAX: usize = 64 << 20;

/// One containerd, in one of its namespaces.
#[derive(Clone)]
pub(super) struct Client {
    channel: tonic::transport::Channel,
    namespace: MetadataValue<Ascii>,
    socket: PathBuf,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// What was named is not there.
    Absent(Error),
    /// What was to be made is there.
    Taken(Error),
    /// Anything else.
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Absent(error) | Failure::Taken(error) | Failure::Other(error) => error,
        }
    }
}

/// Nothing to be done is as good as done.
pub(super) fn absent_is_done<T>(result: Result<T, Failure>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Absent(_)) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

impl Client {
    /// Connects when it is first used, and again whenever it has to.
    pub(super) fn new(socket: &Path, namespace: &str) -> Result<Client, Error> {
        let namespace = namespace
            .parse()
            .map_err(|_| Error::Invalid(format!("{namespace:?} is not the name of a namespace of containerd")))?;
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // No pings: containerd takes them for an attack. What keeps a call from hanging is its deadline.
        let endpoint = Endpoint::from_static("http://containerd").connect_timeout(CONTAINERD_CALL_DEADLINE);
        Ok(Client {
            channel: endpoint.connect_with_connector_lazy(connect),
            namespace,
            socket: socket.to_owned(),
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    pub(super) fn services(&self) -> Services {
        Services::from(self.channel.clone())
    }

    /// For services that send much at once.
    pub(super) fn containers(
        &self,
    ) -> containerd_client::services::v1::containers_client::ContainersClient<tonic::transport::Channel> {
        self.services().containers().max_decoding_message_size(MESSAGE_MAX)
    }

    /// A request in our namespace.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request whose results are kept for this lease.
    pub(super) fn leased<T>(&self, lease: &MetadataValue<Ascii>, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.metadata_mut().insert("containerd-lease", lease.clone());
        request
    }

    /// Waits for a call, within the usual deadline.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.call_within(what, CONTAINERD_CALL_DEADLINE, call).await
    }

    /// Waits for a call.
    pub(super) async fn call_within<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(deadline, call).await {
            Err(_) => Err(Failure::Other(Error::Deadline { call: what, deadline })),
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(what, &status)),
        }
    }

    /// What a status means.
    pub(super) fn failure(&self, what: &str, status: &Status) -> Failure {
        let error = Error::System {
            context: format!("containerd at {}, {what}", self.socket.display()),
            message: reason(status),
        };
        match status.code() {
            Code::NotFound => Failure::Absent(error),
            Code::AlreadyExists => Failure::Taken(error),
            _ => Failure::Other(error),
        }
    }
}

/// The words of a status; of a connection that could not be made, with the causes.
fn reason(status: &Status) -> String {
    let first: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let causes = std::iter::successors(first, |error| error.source());
    let mut words = vec![status.message().to_owned()];
    words.extend(causes.map(ToString::to_string));
    words.dedup();
    words.join(": ")
}
