//! `mctl cp`: files out of a task and into one, without anything in its image that could do it.
//!
//! The agent packs and unpacks with the rights of the task; here nothing is written outside of the place that was named, whatever comes. A file
//! has its name when it is whole.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use muster_agentd::streams::channel;
use muster_runtime::copy::{Copied, CopyError, Place, pack, unpack};
use tokio::sync::mpsc;

use crate::cli::CpArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::rest::with_query;
use crate::session::{Session, Terminal};
use crate::stream::{Event, Receiver, Sender};

/// Pieces of an archive that may wait: half a megabyte.
const QUEUE: usize = 16;
/// How large the pieces are that are sent.
const BLOCK: usize = 32 * 1024;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Here(&'a Path),
    Task(&'a str, &'a str),
}

impl End<'_> {
    /// `TASK:PATH`, or a path here: one with a slash before its first colon.
    fn parse(text: &str) -> End<'_> {
        match text.split_once(':') {
            Some((task, path)) if !task.is_empty() && !task.contains('/') && !task.starts_with('.') => {
                End::Task(task, if path.is_empty() { "." } else { path })
            }
            _ => End::Here(Path::new(text)),
        }
    }
}

/// Runs the command.
pub async fn run(session: &Session, args: CpArgs, terminal: &mut Terminal) -> Outcome {
    let copied = match (End::parse(&args.from), End::parse(&args.to)) {
        (End::Task(task, path), End::Here(to)) => {
            let (sender, receiver) = open(session, task, ("from", path), args.attempt).await?;
            download(sender, receiver, to.to_owned(), terminal).await?
        }
        (End::Here(from), End::Task(task, path)) => {
            if !from.exists() {
                return Err(Failure::new(format!("{}: there is no such file", from.display())));
            }
            let (sender, receiver) = open(session, task, ("to", path), args.attempt).await?;
            upload(sender, receiver, from.to_owned(), terminal).await?
        }
        _ => {
            return Err(Failure::new(
                "one of the two must be TASK:PATH and the other a path here (`./a:b` is one, too)",
            ));
        }
    };
    copied.left_out.iter().for_each(|note| terminal.note(note));
    Ok(Exit::Done)
}

async fn open(
    session: &Session,
    task: &str,
    (way, path): (&str, &str),
    attempt: Option<u32>,
) -> Outcome<(Sender, Receiver)> {
    let mut parameters = vec![(way, path.to_owned())];
    parameters.extend(attempt.map(|attempt| ("attempt", attempt.to_string())));
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let resource = Session::tasks().object_path(&session.namespace, session.task_name(task)?);
    Ok(session
        .rest
        .stream(&with_query(&format!("{resource}/copy"), &parameters))
        .await?)
}

/// Pieces of an archive that come from elsewhere.
struct Pieces {
    from: mpsc::Receiver<Vec<u8>>,
    rest: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.rest.len() {
            match self.from.blocking_recv() {
                Some(piece) => (self.rest, self.read) = (piece, 0),
                None => return Ok(0),
            }
        }
        let many = buffer.len().min(self.rest.len() - self.read);
        buffer[..many].copy_from_slice(&self.rest[self.read..self.read + many]);
        self.read += many;
        Ok(many)
    }
}

async fn download(_sender: Sender, mut receiver: Receiver, to: PathBuf, terminal: &mut Terminal) -> Outcome<Copied> {
    let (pieces, from) = mpsc::channel(QUEUE);
    let pieces_read = Pieces {
        from,
        rest: Vec::new(),
        read: 0,
    };
    let unpacked = tokio::task::spawn_blocking(move || unpack(Place::Here, &to, pieces_read));
    let received = async {
        // What comes after an archive that cannot be unpacked is of no use to anybody.
        let mut wanted = true;
        loop {
            match receiver.next().await? {
                Event::Out(bytes) if wanted => wanted = pieces.send(bytes.to_vec()).await.is_ok(),
                Event::Out(_) => return Ok(()),
                Event::Err(bytes) => drop(terminal.err.write_all(&bytes)),
                Event::Ended(ended) => return ended.of_work(),
            }
        }
    };
    let received = received.await;
    drop(pieces);
    let unpacked = unpacked.await.map_err(|error| Failure::new(error.to_string()))?;
    match (received, unpacked) {
        // What happened there first says more than the archive that breaks off here.
        (Err(failure), _) => Err(failure),
        (Ok(()), unpacked) => unpacked.map_err(failure),
    }
}

/// Pieces of an archive that go elsewhere.
struct Sending(mpsc::Sender<Vec<u8>>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let many = bytes.len().min(BLOCK);
        let sent = self.0.blocking_send(bytes[..many].to_vec());
        sent.map(|()| many).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn upload(mut sender: Sender, mut receiver: Receiver, from: PathBuf, terminal: &mut Terminal) -> Outcome<Copied> {
    let (to, mut pieces) = mpsc::channel(QUEUE);
    let packed = tokio::task::spawn_blocking(move || pack(Place::Here, &from, Sending(to)));
    let send = async {
        while let Some(piece) = pieces.recv().await {
            if !sender.send(channel::STDIN, &piece).await {
                break;
            }
        }
        drop(pieces);
        let packed = packed.await.map_err(|error| Failure::new(error.to_string()))?;
        // An archive that broke off here is not ended, so that it is not taken for a whole one.
        let packed = packed.map_err(failure)?;
        sender.end_input().await;
        Ok(packed)
    };
    let receive = async {
        loop {
            match receiver.next().await? {
                Event::Out(_) => {}
                Event::Err(bytes) => drop(terminal.err.write_all(&bytes)),
                Event::Ended(ended) => return ended.of_work(),
            }
        }
    };
    tokio::pin!(send, receive);
    // What happens there is told, also when it ends before all was sent; what happens here ends it there.
    let sent: Outcome<Copied> = tokio::select! {
        biased;
        ended = &mut receive => {
            ended?;
            return send.await;
        }
        sent = &mut send => sent,
    };
    let copied = sent?;
    receive.await.map(|()| copied)
}

fn failure(error: CopyError) -> Failure {
    Failure::new(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_told_from_paths_here() {
        assert_eq!(End::parse("hello:/etc/hosts"), End::Task("hello", "/etc/hosts"));
        assert_eq!(End::parse("hello:a:b"), End::Task("hello", "a:b"));
        assert_eq!(End::parse("hello:"), End::Task("hello", "."));
        for here in ["a", "./a:b", "/a:b", "dir/a:b", ":x"] {
            assert_eq!(End::parse(here), End::Here(Path::new(here)), "{here}");
        }
    }
}
