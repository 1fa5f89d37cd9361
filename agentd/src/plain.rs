//! A listener in the clear, for what anybody may read who can reach it: metrics, when an operator asks for that.
//!
//! What must never happen here: anything but reading. Tested over a socket.

use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::limits::{FOLLOW_INTERVAL, HANDSHAKE_DEADLINE, PLAIN_CONNECTIONS, PLAIN_DEADLINE};

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(PLAIN_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: wait until some are free.
            sleep(FOLLOW_INTERVAL).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_DEADLINE);
            // Whoever is cut off connects anew.
            let _ = timeout(PLAIN_DEADLINE, builder.serve_connection(TokioIo::new(stream), service)).await;
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_is_answered_and_nothing_else_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Router::new().route("/metrics", get(async || "up 1\n"))));
        for (path, begins, ends) in [
            ("/metrics", "HTTP/1.1 200", "up 1\n"),
            ("/v1/usage", "HTTP/1.1 404", ""),
        ] {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a1\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answered");
            assert!(answer.starts_with(begins) && answer.ends_with(ends), "{answer}");
        }
    }
}
