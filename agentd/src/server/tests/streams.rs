//! Streams over real TLS, with a client that speaks the protocol by hand.

use futures::{SinkExt as _, StreamExt as _};
use muster_runtime::fake::Ending;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::streams::channel;

const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Server {
    /// The head of the answer, and the connection behind it.
    async fn upgrade(&self, path: &str, protocols: &str) -> (String, TlsStream<TcpStream>) {
        let mut stream = self
            .connect(&self.authority, Some(API_SERVER))
            .await
            .expect("connected");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocols}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        (String::from_utf8(head).expect("text"), stream)
    }

    async fn open(&self, path: &str) -> Socket {
        let (head, stream) = self.upgrade(path, PROTOCOLS).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.to_lowercase()
                .contains("sec-websocket-protocol: v5.channel.k8s.io"),
            "{head}"
        );
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    /// The first line of what is answered instead.
    async fn refused(&self, path: &str) -> String {
        let (head, _) = self.upgrade(path, PROTOCOLS).await;
        head.lines().next().unwrap_or_default().to_owned()
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

/// What comes until the connection is closed: standard output, standard error, and the status.
async fn to_end(socket: &mut Socket) -> (String, String, Value) {
    let mut text = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            assert!(text[3].is_empty(), "nothing comes after the status");
            text[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    let text = text.map(|bytes| String::from_utf8(bytes).expect("text"));
    let status = serde_json::from_str(&text[3]).expect("a status");
    (text[1].clone(), text[2].clone(), status)
}

/// A server with a container that runs; what its commands do.
async fn running(behaviour: Behaviour) -> Server {
    let server = server().await;
    server.started("c", Behaviour::forever()).await;
    server.fake.set_behaviours(move |_, _| behaviour.clone());
    server
}

#[tokio::test]
async fn a_command_prints_and_then_its_status_comes() {
    let now = Duration::ZERO;
    let behaviour = Behaviour::exits(now, 7)
        .printing(now, Stream::Stdout, "out\n")
        .printing(now, Stream::Stderr, "err\n");
    let server = running(behaviour).await;
    let mut socket = server.open("/v1/exec/c?command=x&stdout=true&stderr=true").await;
    let (out, err, status) = to_end(&mut socket).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(
        (&status["reason"], &status["status"]),
        (&"NonZeroExitCode".into(), &"Failure".into())
    );
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

#[tokio::test]
async fn input_is_read_to_its_end_while_output_comes() {
    let server = running(Behaviour::forever()).await;
    let socket = server.open("/v1/exec/c?command=cat&stdin=true&stdout=true").await;
    let (mut sink, stream) = socket.split();
    // More than all buffers on the way hold.
    let block = vec![b'x'; 64 * 1024];
    let send = async {
        for _ in 0..64 {
            sink.send(message(channel::STDIN, &block)).await.expect("taken");
        }
        sink.send(message(channel::CLOSE, &[channel::STDIN]))
            .await
            .expect("taken");
    };
    let mut sizes = (0, None);
    let receive = stream.for_each(|message| {
        if let Ok(Message::Binary(bytes)) = message {
            match bytes[0] {
                channel::STDOUT => sizes.0 += bytes.len() - 1,
                _ => sizes.1 = Some(bytes.slice(1..)),
            }
        }
        std::future::ready(())
    });
    futures::join!(send, receive);
    assert_eq!(sizes.0, 64 * block.len());
    assert_eq!(
        sizes.1.expect("a status"),
        br#"{"metadata":{},"status":"Success"}"#.as_slice()
    );
}

#[tokio::test]
async fn a_command_that_cannot_be_run_says_why() {
    let server = running(Behaviour::ends(Ending::CannotRun("x: not found".to_owned()))).await;
    let mut socket = server.open("/v1/exec/c?command=x&stderr=true").await;
    let (_, err, status) = to_end(&mut socket).await;
    assert_eq!(err, "x: not found\n");
    assert_eq!(
        (&status["message"], &status["details"]["causes"][0]["message"]),
        (&"x: not found".into(), &"127".into())
    );
}

#[tokio::test]
async fn what_cannot_begin_is_answered_plainly() {
    let server = running(Behaviour::forever()).await;
    assert_eq!(
        server.refused("/v1/exec/other?command=x").await,
        "HTTP/1.1 404 Not Found"
    );
    assert_eq!(
        server.refused("/v1/exec/c").await,
        "HTTP/1.1 400 Bad Request",
        "no command"
    );
    assert_eq!(
        server.refused("/v1/copy/c?from=/a&to=/b").await,
        "HTTP/1.1 400 Bad Request"
    );
    let (head, _) = server.upgrade("/v1/exec/c?command=x", "base64.channel.k8s.io").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    server.fake.exit(&ContainerId::new("c").expect("an id"), 0);
    assert_eq!(server.refused("/v1/exec/c?command=x").await, "HTTP/1.1 409 Conflict");
}

#[tokio::test]
async fn whoever_goes_away_makes_room_for_others() {
    let server = running(Behaviour::forever()).await;
    let path = "/v1/exec/c?command=x&stdout=true";
    let mut sockets = Vec::new();
    for _ in 0..muster_runtime::limits::EXEC_SESSIONS {
        sockets.push(server.open(path).await);
    }
    assert_eq!(server.refused(path).await, "HTTP/1.1 429 Too Many Requests");
    // Without a word, as when the client is killed.
    drop(sockets);
    let again = async {
        while !server.upgrade(path, PROTOCOLS).await.0.starts_with("HTTP/1.1 101") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again)
        .await
        .expect("there is room again");
}

const HALVES: &str = crate::streams::forward::HALVES;

#[tokio::test]
async fn each_direction_of_a_connection_ends_by_itself() {
    let server = running(Behaviour::forever()).await;
    let (head, stream) = server
        .upgrade("/v1/portforward/c?ports=8080", &format!("v4.channel.k8s.io, {HALVES}"))
        .await;
    assert!(
        head.to_lowercase()
            .contains(&format!("sec-websocket-protocol: {HALVES}")),
        "{head}"
    );
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let (mut sink, mut stream) = socket.split();
    // More than all buffers on the way hold; the port sends it back.
    let block = vec![b'x'; 64 * 1024];
    let send = async {
        for _ in 0..64 {
            sink.send(message(0, &block)).await.expect("taken");
        }
        sink.send(message(channel::CLOSE, &[0])).await.expect("taken");
    };
    let mut seen = Vec::new();
    let receive = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => seen.push(bytes),
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    futures::join!(send, receive);
    let port = 8080_u16.to_le_bytes();
    assert_eq!(seen[..2], [[&[0], &port[..]].concat(), [&[1], &port[..]].concat()]);
    assert_eq!(seen.pop().expect("an end"), [channel::CLOSE, 0].as_slice());
    let bytes: usize = seen[2..].iter().map(|bytes| bytes.len() - 1).sum();
    assert_eq!(bytes, 64 * block.len(), "all that was sent came back before the end");
}

#[tokio::test]
async fn ports_of_one_socket_are_apart_and_one_that_is_closed_says_so() {
    let server = running(Behaviour::forever()).await;
    let (head, stream) = server
        .upgrade("/v1/portforward/c?ports=8080,80", "v4.channel.k8s.io")
        .await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut socket: Socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    socket.send(message(0, b"question")).await.expect("taken");
    let mut text: [Vec<u8>; 4] = Default::default();
    while text[0].len() < 2 + b"question".len() || text[3].len() <= 2 {
        if let Message::Binary(bytes) = socket.next().await.expect("more").expect("whole") {
            text[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(
        (&text[0][2..], &text[1][..]),
        (&b"question"[..], &8080_u16.to_le_bytes()[..])
    );
    assert_eq!(text[2], 80_u16.to_le_bytes());
    assert_eq!(text[3][2..], *b"port 80 in the container: Connection refused");
    // What closes the socket ends the connection, and what waits in it is not taken for more.
    socket.close(None).await.expect("closed");
}

#[tokio::test]
async fn connections_to_ports_of_a_container_are_counted_and_come_back() {
    let server = running(Behaviour::forever()).await;
    let path = "/v1/portforward/c?ports=8080";
    let mut streams = Vec::new();
    for _ in 0..crate::limits::FORWARDS_OF_ONE {
        let (head, stream) = server.upgrade(path, HALVES).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        streams.push(stream);
    }
    let refused = server.upgrade(path, HALVES).await.0;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    drop(streams);
    let again = async {
        while !server.upgrade(path, HALVES).await.0.starts_with("HTTP/1.1 101") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, again)
        .await
        .expect("there is room again");
    for (path, code) in [
        ("/v1/portforward/other?ports=8080", "404"),
        ("/v1/portforward/c?ports=0", "400"),
        ("/v1/portforward/c", "400"),
    ] {
        let head = server.upgrade(path, HALVES).await.0;
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {head}");
    }
}

#[tokio::test]
async fn connections_to_ports_end_with_their_container() {
    let server = running(Behaviour::forever()).await;
    let (head, stream) = server.upgrade("/v1/portforward/c?ports=8080", HALVES).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut socket: Socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    socket.send(message(0, b"x")).await.expect("taken");
    // What is at the other end goes on; the container does not.
    server.fake.exit(&ContainerId::new("c").expect("an id"), 0);
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("it has ended");
}
