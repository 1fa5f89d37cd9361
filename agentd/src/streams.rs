//! Commands and files of containers here, for the API server, which hands the connection on to whoever asked.
//!
//! `GET /v1/exec/ID?command=WORD…&stdin=&stdout=&stderr=&tty=&columns=&rows=` runs a command in a container, and `GET /v1/copy/ID?from=PATH`
//! (or `to=PATH`) takes files out of it or puts them in. Both speak Kubernetes' channel protocol over a WebSocket: each message begins with the
//! number of its channel ([`channel`]). What cannot be begun is a plain answer before the upgrade; how a command ended is a `Status` on the
//! error channel, and then the connection is closed. Connections to ports are in [`forward`].
//!
//! It promises: a slow reader slows the command down and nothing else; a peer that is gone is noticed, and what it began is ended; the status
//! comes after all output. What must never happen here: memory that grows with what a peer or a command sends.

pub mod forward;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use muster_runtime::exec::{Ended, Errand, Exec, Input, Output, Session, Size, Terminal};
use muster_runtime::{ContainerId, Error, Runtime};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use crate::limits::{
    FORWARDS_ENTERING, FORWARDS_MAX, HANDSHAKE_DEADLINE, RUNTIME_DEADLINE, STREAM_ALIVE, STREAM_BLOCK, STREAM_FAREWELL,
    STREAM_MESSAGE, STREAM_QUEUE, STREAM_SILENCE, STREAMS_MAX,
};

/// What a message is: its first byte.
pub mod channel {
    /// To the command.
    pub const STDIN: u8 = 0;
    /// From the command, or from its terminal.
    pub const STDOUT: u8 = 1;
    /// From the command.
    pub const STDERR: u8 = 2;
    /// How it ended: a `Status`.
    pub const ERROR: u8 = 3;
    /// The size of the terminal: `{"Width": …, "Height": …}`.
    pub const RESIZE: u8 = 4;
    /// The end of the channel whose number follows; since version 5.
    pub const CLOSE: u8 = 255;
}

/// The versions of the protocol that are spoken, the best first. The older one cannot end standard input.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// What is needed to have streams.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) runtime: Arc<dyn Runtime>,
    slots: Arc<Semaphore>,
    /// Of connections to ports: of all containers, and of each that has some.
    forwards: Arc<Semaphore>,
    forwards_of: Arc<Mutex<BTreeMap<ContainerId, Weak<forward::OfOne>>>>,
    /// For those who make such a connection; it is made in a moment, so many at once are not refused, but wait.
    entering: Arc<Semaphore>,
}

impl Streams {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Streams {
        Streams {
            runtime,
            slots: Arc::new(Semaphore::new(STREAMS_MAX)),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            forwards_of: Arc::default(),
            entering: Arc::new(Semaphore::new(FORWARDS_ENTERING)),
        }
    }
}

type Pairs = Vec<(String, String)>;
type Socket = WebSocketStream<TokioIo<Upgraded>>;

fn plain(code: StatusCode, text: impl Into<String>) -> Response {
    (code, text.into()).into_response()
}

fn refusal(error: &Error) -> Response {
    let code = match error {
        Error::NotFound(_) => StatusCode::NOT_FOUND,
        Error::NotRunning(_) => StatusCode::CONFLICT,
        Error::Invalid(_) => StatusCode::BAD_REQUEST,
        Error::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    plain(code, error.to_string())
}

fn value<'a>(pairs: &'a Pairs, name: &str) -> Option<&'a str> {
    let found = pairs.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn flag(pairs: &Pairs, name: &str) -> bool {
    value(pairs, name).is_some_and(|value| matches!(value, "" | "true" | "1"))
}

fn command(pairs: &Pairs) -> Exec {
    let words = pairs.iter().filter(|(key, _)| key == "command");
    let number = |name, default| value(pairs, name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let usual = Size::default();
    Exec {
        stdin: flag(pairs, "stdin"),
        stdout: flag(pairs, "stdout"),
        stderr: flag(pairs, "stderr"),
        terminal: flag(pairs, "tty").then(|| Size {
            columns: number("columns", usual.columns),
            rows: number("rows", usual.rows),
        }),
        ..Exec::command(words.map(|(_, word)| word.as_str()))
    }
}

pub(crate) async fn exec(
    State(streams): State<Streams>,
    Path(id): Path<String>,
    Query(pairs): Query<Pairs>,
    request: Request,
) -> Response {
    streams.begin(id, command(&pairs), request).await
}

pub(crate) async fn copy(
    State(streams): State<Streams>,
    Path(id): Path<String>,
    Query(pairs): Query<Pairs>,
    request: Request,
) -> Response {
    match (value(&pairs, "from"), value(&pairs, "to")) {
        (Some(path), None) => streams.begin(id, Exec::pack(path), request).await,
        (None, Some(path)) => streams.begin(id, Exec::unpack(path), request).await,
        _ => plain(StatusCode::BAD_REQUEST, "either `from` or `to` says which path"),
    }
}

impl Streams {
    /// Enters the container, and then answers; the rest goes on by itself.
    async fn begin(&self, id: String, exec: Exec, mut request: Request) -> Response {
        let Some(id) = ContainerId::new(id) else {
            return plain(StatusCode::BAD_REQUEST, "this is not the id of a container");
        };
        let Some((answer, protocol, upgrade)) = accepted(&mut request, &PROTOCOLS) else {
            return plain(StatusCode::BAD_REQUEST, NO_SOCKET);
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let text = format!("this agent has {STREAMS_MAX} streams, which is the most; end one of them");
            return plain(StatusCode::TOO_MANY_REQUESTS, text);
        };
        let late = Error::Deadline {
            call: "exec",
            deadline: RUNTIME_DEADLINE,
        };
        let session = timeout(RUNTIME_DEADLINE, self.runtime.exec(&id, &exec)).await;
        let session = match session.unwrap_or(Err(late)) {
            Ok(session) => session,
            Err(error) => return refusal(&error),
        };
        let says_why = matches!(exec.errand, Errand::Command(_));
        tokio::spawn(async move {
            let _slot = slot;
            if let Ok(Ok(upgraded)) = timeout(HANDSHAKE_DEADLINE, upgrade).await {
                let socket = socket(upgraded).await;
                serve(socket, session, protocol, says_why).await;
            }
        });
        answer
    }
}

const NO_SOCKET: &str = "this is not a WebSocket of these protocols";

/// The answer that opens a WebSocket, the protocol that is spoken, and the connection when it has become one.
fn accepted(request: &mut Request, protocols: &[&'static str]) -> Option<(Response, &'static str, OnUpgrade)> {
    let (answer, protocol) = answer(request.headers(), protocols)?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>()?;
    Some((answer, protocol, upgrade))
}

fn answer(headers: &HeaderMap, protocols: &[&'static str]) -> Option<(Response, &'static str)> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let protocol = protocols.iter().find(|known| offered.contains(known))?;
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept_key(key.as_bytes()))
        .header(header::SEC_WEBSOCKET_PROTOCOL, *protocol)
        .body(Body::empty());
    Some((response.ok()?, protocol))
}

/// What proves that a key was understood (RFC 6455, 4.2.2); the hash is no protection of anything.
pub fn accept_key(key: &[u8]) -> String {
    const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC].concat());
    BASE64_STANDARD.encode(hash)
}

async fn socket(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(STREAM_MESSAGE))
        .max_frame_size(Some(STREAM_MESSAGE));
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut whole = Vec::with_capacity(bytes.len() + 1);
    whole.push(channel);
    whole.extend_from_slice(bytes);
    Message::Binary(whole.into())
}

/// Hands on what the command prints, until nobody can print any more.
async fn output(stream: Option<Output>, channel: u8, to: &mpsc::Sender<Message>) {
    let Some(mut stream) = stream else { return };
    let mut block = vec![0; STREAM_BLOCK];
    while let Ok(read @ 1..) = stream.read(&mut block).await {
        if to.send(message(channel, &block[..read])).await.is_err() {
            return;
        }
    }
}

/// Writes messages, and asks a silent peer whether it is there. Ends when there are no more, or the peer takes none.
async fn write(mut sink: SplitSink<Socket, Message>, mut messages: mpsc::Receiver<Message>) {
    let mut alive = interval_at(Instant::now() + STREAM_ALIVE, STREAM_ALIVE);
    loop {
        let next = tokio::select! {
            biased;
            next = messages.recv() => next,
            _ = alive.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(next) = next else {
            // Clients of Kubernetes take an end without a reason for one that broke.
            let normal = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            let farewell = async {
                sink.send(Message::Close(Some(normal))).await?;
                sink.close().await
            };
            let _ = timeout(STREAM_FAREWELL, farewell).await;
            return;
        };
        if sink.send(next).await.is_err() {
            return;
        }
    }
}

/// What comes from the peer. Ends when the peer is gone.
struct Reader {
    stream: SplitStream<Socket>,
    stdin: Option<Input>,
    terminal: Option<Box<dyn Terminal>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    width: u16,
    height: u16,
}

impl Reader {
    async fn read(&mut self) {
        // A peer that answers nothing for so long is gone, whatever its connection says.
        while let Ok(Some(Ok(message))) = timeout(STREAM_SILENCE, self.stream.next()).await {
            match message {
                Message::Binary(bytes) => self.take(&bytes).await,
                Message::Text(text) => self.take(text.as_bytes()).await,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    async fn take(&mut self, bytes: &[u8]) {
        match bytes.split_first() {
            Some((&channel::STDIN, rest)) if !rest.is_empty() => {
                if let Some(stdin) = &mut self.stdin
                    && stdin.write_all(rest).await.is_err()
                {
                    // The command reads no more; what else is sent goes nowhere.
                    self.stdin = None;
                }
            }
            Some((&channel::RESIZE, rest)) => {
                if let (Some(terminal), Ok(size)) = (&self.terminal, serde_json::from_slice::<Resize>(rest)) {
                    let (columns, rows) = (size.width, size.height);
                    // A terminal that is gone has no size.
                    let _ = terminal.resize(Size { columns, rows });
                }
            }
            Some((&channel::CLOSE, [channel::STDIN])) => {
                if let Some(mut stdin) = self.stdin.take() {
                    let _ = stdin.shutdown().await;
                }
            }
            _ => {}
        }
    }
}

/// Serves a peer until the command has ended and it has been told, or the peer is gone.
async fn serve(socket: Socket, mut session: Session, protocol: &str, says_why: bool) {
    let (sink, stream) = socket.split();
    let (to, messages) = mpsc::channel(STREAM_QUEUE);
    let terminal = session.terminal.is_some();
    let mut reader = Reader {
        stream,
        stdin: session.stdin.take(),
        terminal: session.terminal.take(),
    };
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let told = async {
        let printed = async {
            tokio::join!(
                output(stdout, channel::STDOUT, &to),
                output(stderr, channel::STDERR, &to)
            );
        };
        let (ended, ()) = tokio::join!(session.ended, printed);
        if let Some(why) = ended.why.as_ref().filter(|_| says_why) {
            let (to_where, end) = if terminal {
                (channel::STDOUT, "\r\n")
            } else {
                (channel::STDERR, "\n")
            };
            let _ = to.send(message(to_where, format!("{why}{end}").as_bytes())).await;
        }
        let _ = to.send(message(channel::ERROR, status(&ended).as_bytes())).await;
        drop(to);
    };
    tracing::debug!(protocol, "a stream begins");
    let write = write(sink, messages);
    tokio::pin!(write);
    let mut farewell = false;
    {
        let talk = async {
            tokio::select! {
                biased;
                // Before all is said it ends only because nobody takes it.
                () = &mut write => {}
                () = told => (&mut write).await,
            }
        };
        tokio::select! {
            biased;
            () = talk => farewell = true,
            () = reader.read() => {}
        }
    }
    if farewell {
        // The peer closes in its turn; what it sends until then is nobody's.
        reader.stdin = None;
        let _ = timeout(STREAM_FAREWELL, reader.read()).await;
    }
}

/// How a command ended, in the words that clients of Kubernetes read.
fn status(ended: &Ended) -> String {
    if ended.code == 0 {
        return json!({ "metadata": {}, "status": "Success" }).to_string();
    }
    let message = match &ended.why {
        Some(why) => why.clone(),
        None => format!("command terminated with non-zero exit code: {}", ended.code),
    };
    let causes = [json!({ "reason": "ExitCode", "message": ended.code.to_string() })];
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message, "details": { "causes": causes },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_query_become_a_command() {
        let pairs = |text: &str| -> Pairs {
            let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let exec = command(&pairs(
            "command=sh&command=-c&command=&stdin=true&stdout=1&tty=true&rows=50",
        ));
        assert_eq!(
            exec.errand,
            Errand::Command(vec!["sh".into(), "-c".into(), String::new()])
        );
        assert_eq!((exec.stdin, exec.stdout, exec.stderr), (true, true, false));
        assert_eq!(exec.terminal, Some(Size { columns: 80, rows: 50 }));
    }

    #[test]
    fn status_is_what_clients_of_kubernetes_read() {
        assert_eq!(status(&Ended::with(0)), r#"{"metadata":{},"status":"Success"}"#);
        let failed: serde_json::Value = serde_json::from_str(&status(&Ended::with(7))).expect("json");
        assert_eq!(
            (&failed["reason"], &failed["details"]["causes"][0]["message"]),
            (&json!("NonZeroExitCode"), &json!("7"))
        );
    }

    #[test]
    fn best_version_that_both_speak_is_chosen() {
        let headers = |offered: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::SEC_WEBSOCKET_KEY,
                "dGhlIHNhbXBsZSBub25jZQ==".parse().expect("a value"),
            );
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered.parse().expect("a value"));
            headers
        };
        let (accepted, protocol) = answer(&headers("v4.channel.k8s.io, v5.channel.k8s.io"), &PROTOCOLS).expect("known");
        assert_eq!(protocol, "v5.channel.k8s.io");
        // The example of RFC 6455.
        assert_eq!(
            accepted.headers()[header::SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(answer(&headers("base64.channel.k8s.io"), &PROTOCOLS).is_none());
    }
}
