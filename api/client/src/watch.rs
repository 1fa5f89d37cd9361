//! The ordered watch over several kinds: one stream, in the order of revisions.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::Method;
use http_body_util::BodyExt;
use kube::core::Status;
use muster_api::wire::WatchLine;

use crate::{Call, Client, DEADLINE, Error, Result};

/// The server says something at least every 5 s; after three times that, it is taken for dead.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(15);

/// The longest line that is read: 1000 objects of a snapshot part, 2 KiB each on average, with much room.
pub const LINE_BYTES_MAX: usize = 128 << 20;

impl Client {
    /// Watches kinds (`tasks.muster.dev`, `namespaces`, …), all of them in the order of revisions.
    ///
    /// Without `from`: first a snapshot. With it: everything after that revision; [`Error::Gone`] when that is not kept any
    /// more. The stream ends when the server ends it, and after the first error.
    pub async fn ordered_watch(
        &self,
        resources: &[&str],
        from: Option<u64>,
    ) -> Result<impl Stream<Item = Result<WatchLine>> + Send + use<>> {
        self.watch_with(resources, "", from).await
    }

    /// The same, and of every other kind, also of those that are yet to come, outlines: what an object is, its owners, its finalizers.
    pub async fn ordered_watch_of_all(
        &self,
        resources: &[&str],
        from: Option<u64>,
    ) -> Result<impl Stream<Item = Result<WatchLine>> + Send + use<>> {
        self.watch_with(resources, "&others=true", from).await
    }

    async fn watch_with(
        &self,
        resources: &[&str],
        more: &str,
        from: Option<u64>,
    ) -> Result<impl Stream<Item = Result<WatchLine>> + Send + use<>> {
        let mut path = format!("/muster/v1/watch?resources={}{more}", resources.join(","));
        if let Some(revision) = from {
            path.push_str(&format!("&resourceVersion={revision}"));
        }
        let opening = tokio::time::timeout(DEADLINE, self.open(Call::new(Method::GET, path, "a watch")));
        let response = opening.await.map_err(|_| Error::Timeout(DEADLINE))??;
        let chunks = response.into_body().into_data_stream();
        let chunks = chunks.map(|chunk| chunk.map_err(|source| Error::Transport(Box::new(source))));
        Ok(lines(chunks.boxed()))
    }
}

struct Reader {
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
    splitter: Splitter,
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// Decodes lines; silence for too long is an error.
fn lines(chunks: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>) -> impl Stream<Item = Result<WatchLine>> + Send {
    let reader = Reader {
        chunks,
        splitter: Splitter::default(),
        ready: VecDeque::new(),
        ended: false,
    };
    stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await?;
        reader.ended = item.is_err();
        Some((item, reader))
    })
}

impl Reader {
    async fn next(&mut self) -> Option<Result<WatchLine>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(decode(&line));
            }
            match tokio::time::timeout(WATCH_SILENCE_MAX, self.chunks.next()).await {
                Err(_) => return Some(Err(Error::Timeout(WATCH_SILENCE_MAX))),
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some(Err(error)),
                Ok(Some(Ok(chunk))) => {
                    if let Err(error) = self.splitter.push(&chunk, &mut self.ready) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

fn decode(line: &[u8]) -> Result<WatchLine> {
    match serde_json::from_slice(line).map_err(|source| Error::decode("a line of a watch", source))? {
        WatchLine::Error { object } => {
            let status: Status =
                serde_json::from_value(object).map_err(|source| Error::decode("the end of a watch", source))?;
            Err(Error::from_status(status, None))
        }
        line => Ok(line),
    }
}

/// Cuts chunks into lines; looks at each byte once.
#[derive(Default)]
struct Splitter {
    buffer: BytesMut,
    searched: usize,
}

impl Splitter {
    fn push(&mut self, chunk: &[u8], out: &mut VecDeque<Bytes>) -> Result<()> {
        self.buffer.extend_from_slice(chunk);
        while let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                out.push_back(line);
            }
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(Error::decode(
                "a line of a watch",
                format!("it is longer than {LINE_BYTES_MAX} bytes"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_chunks(chunks: Vec<&'static str>) -> impl Stream<Item = Result<WatchLine>> {
        lines(stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk)))).boxed())
    }

    #[tokio::test]
    async fn lines_are_put_together_from_chunks() {
        let chunks = vec![
            "{\"type\":\"PROG",
            "RESS\",\"revision\":1}\n\n{\"type\":\"PROGRESS\",\"revision\":2}\n{\"ty",
            "pe\":\"BATCH\",\"revision\":3,\"changes\":[]}\n",
        ];
        let lines: Vec<WatchLine> = from_chunks(chunks).map(|line| line.expect("line")).collect().await;
        let expect = [
            WatchLine::Progress { revision: 1 },
            WatchLine::Progress { revision: 2 },
            WatchLine::Batch {
                revision: 3,
                changes: Vec::new(),
            },
        ];
        assert_eq!(lines, expect);
    }

    #[tokio::test]
    async fn an_error_line_ends_the_watch_as_an_error() {
        let chunks = vec![
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"message\":\"old\"}}\n",
            "{\"type\":\"PROGRESS\",\"revision\":2}\n",
        ];
        let lines: Vec<Result<WatchLine>> = from_chunks(chunks).collect().await;
        assert!(matches!(lines.as_slice(), [Err(Error::Gone(_))]), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let chunks =
            stream::iter([Ok(Bytes::from("{\"type\":\"PROGRESS\",\"revision\":1}\n"))]).chain(stream::pending());
        let lines: Vec<Result<WatchLine>> = lines(chunks.boxed()).collect().await;
        assert!(matches!(lines.as_slice(), [Ok(_), Err(Error::Timeout(_))]), "{lines:?}");
    }

    #[tokio::test]
    async fn what_is_no_line_is_an_error() {
        let lines: Vec<Result<WatchLine>> = from_chunks(vec!["{\"type\":\"NEWS\"}\n"]).collect().await;
        assert!(matches!(lines.as_slice(), [Err(Error::Decode { .. })]), "{lines:?}");
    }
}
