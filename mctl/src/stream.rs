//! Streams into tasks: Kubernetes' channel protocol over a WebSocket, from the client's side.
//!
//! What is sent and what is received go on beside each other: a client that wrote and did not read meanwhile could wait for ever for a command
//! that does the same.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use muster_agentd::streams::{accept_key, channel};
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::failure::{Exit, Failure, Outcome};
use crate::rest::CallError;

/// The longest message that is taken; agents send 32 KiB.
const MESSAGE_MAX: usize = 1 << 20;

/// A WebSocket.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What opens a WebSocket: headers of a request. `random`: 16 bytes that no other has.
pub fn headers(random: [u8; 16], protocols: &[&str]) -> Vec<(header::HeaderName, String)> {
    vec![
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_VERSION, "13".to_owned()),
        (header::SEC_WEBSOCKET_KEY, BASE64_STANDARD.encode(random)),
        (header::SEC_WEBSOCKET_PROTOCOL, protocols.join(", ")),
    ]
}

/// A WebSocket that was opened, in which this protocol is spoken.
pub async fn open(
    response: http::Response<kube::client::Body>,
    key: &str,
    protocol: &str,
) -> Result<Socket, CallError> {
    if !speaks(response.headers(), key, protocol) {
        return Err(CallError::Garbled(
            "it does not speak the protocol of streams".to_owned(),
        ));
    }
    let upgraded = hyper::upgrade::on(response).await;
    let upgraded = upgraded.map_err(|error| CallError::Garbled(error.to_string()))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
}

/// Whether an answer opens a WebSocket in which this protocol is spoken.
fn speaks(headers: &HeaderMap, key: &str, protocol: &str) -> bool {
    let is = |name: header::HeaderName, value: &str| {
        headers
            .get(name)
            .is_some_and(|found| found.as_bytes() == value.as_bytes())
    };
    is(header::SEC_WEBSOCKET_PROTOCOL, protocol) && is(header::SEC_WEBSOCKET_ACCEPT, &accept_key(key.as_bytes()))
}

/// The two halves of a stream into a task.
pub fn halves(socket: Socket) -> (Sender, Receiver) {
    let (sink, stream) = socket.split();
    (Sender(sink), Receiver(stream))
}

/// What is sent on a channel.
pub fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut whole = Vec::with_capacity(bytes.len() + 1);
    whole.push(channel);
    whole.extend_from_slice(bytes);
    Message::Binary(whole.into())
}

/// To the task. A connection that is gone is the receiver's to tell.
pub struct Sender(SplitSink<Socket, Message>);

impl Sender {
    /// Sends on a channel; `false`: nobody takes it.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.0.send(message(channel, bytes)).await.is_ok()
    }

    /// Says that standard input has ended.
    pub async fn end_input(&mut self) -> bool {
        self.send(channel::CLOSE, &[channel::STDIN]).await
    }
}

/// What comes from the task.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It printed something.
    Out(Bytes),
    /// It printed something to standard error.
    Err(Bytes),
    /// How it ended; nothing comes after this.
    Ended(Ended),
}

/// How what was asked for ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Well.
    Well,
    /// With this exit code, and this is said about it.
    Code(u8, String),
    /// In another way.
    Badly(String),
}

/// From the task.
pub struct Receiver(SplitStream<Socket>);

impl Receiver {
    /// The next.
    ///
    /// # Errors
    /// When the connection breaks off.
    pub async fn next(&mut self) -> Outcome<Event> {
        loop {
            let broken = |why: &str| {
                Err(Failure::new(format!(
                    "the connection to the task broke off{why}: the server or the agent has gone, or the task was moved; what was begun is ended there"
                )))
            };
            let bytes = match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Close(_))) | None => return broken(""),
                Some(Err(error)) => return broken(&format!(" ({error})")),
                Some(Ok(_)) => continue,
            };
            match bytes.first() {
                Some(&channel::STDOUT) => return Ok(Event::Out(bytes.slice(1..))),
                Some(&channel::STDERR) => return Ok(Event::Err(bytes.slice(1..))),
                Some(&channel::ERROR) => return Ok(Event::Ended(ended(&bytes[1..]))),
                _ => {}
            }
        }
    }
}

fn ended(status: &[u8]) -> Ended {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" {
        return Ended::Well;
    }
    let message = status["message"]
        .as_str()
        .unwrap_or("it failed, and does not say why")
        .to_owned();
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
    match code {
        Some(code) if status["reason"] == "NonZeroExitCode" => Ended::Code(code, message),
        _ => Ended::Badly(message),
    }
}

impl Ended {
    /// As the end of a command that runs one there: its exit code says it all.
    pub fn of_command(self) -> Outcome {
        match self {
            Ended::Well => Ok(Exit::Done),
            Ended::Code(code, _) => Ok(Exit::OfTask(code)),
            Ended::Badly(why) => Err(Failure::new(why)),
        }
    }

    /// As the end of something that either works or not.
    pub fn of_work(self) -> Outcome<()> {
        match self {
            Ended::Well => Ok(()),
            Ended::Code(_, why) | Ended::Badly(why) => Err(Failure::new(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_kubernetes_tells_them() {
        assert_eq!(ended(br#"{"metadata":{},"status":"Success"}"#), Ended::Well);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","message":"m","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(ended(failed), Ended::Code(7, "m".to_owned()));
        assert_eq!(
            ended(br#"{"status":"Failure","message":"m"}"#),
            Ended::Badly("m".to_owned())
        );
        assert!(matches!(ended(b"garbage"), Ended::Badly(_)));
    }
}
