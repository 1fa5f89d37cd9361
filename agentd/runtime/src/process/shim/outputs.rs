//! The two streams of a command, on their way into the log.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::super::logs::LogWriter;
use crate::Stream;

/// As much as a pipe holds.
const BLOCK: usize = 64 * 1024;

/// Reads before the loop looks at its other duties: a command that prints without end can still be stopped.
const READS_AT_ONCE: usize = 16;

pub(super) struct Outputs {
    streams: Vec<(Stream, OwnedFd)>,
    log: LogWriter,
    block: Vec<u8>,
}

impl Outputs {
    pub(super) fn begin(directory: &Path, log_bytes: u64, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Outputs> {
        let log = LogWriter::begin(directory, log_bytes)?;
        Ok(Outputs {
            streams: vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)],
            log,
            block: vec![0; BLOCK],
        })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().map(|(_, fd)| fd.as_fd())
    }

    pub(super) fn is_pending(&self) -> bool {
        self.log.is_pending()
    }

    /// Copies what there is. With nothing there, beginnings of lines have waited long enough.
    pub(super) fn copy(&mut self, time_ms: i64) {
        if !self.copy_some(time_ms) {
            note(self.log.flush(time_ms));
        }
    }

    /// Copies all that is left, when nobody can write any more.
    pub(super) fn finish(&mut self, time_ms: i64) {
        while self.copy_some(time_ms) {}
        note(self.log.flush(time_ms));
    }

    fn copy_some(&mut self, time_ms: i64) -> bool {
        let mut any = false;
        let mut ended = Vec::new();
        for (stream, fd) in &self.streams {
            for _ in 0..READS_AT_ONCE {
                match nix::unistd::read(fd, &mut self.block) {
                    Ok(0) => {
                        ended.push(*stream);
                        break;
                    }
                    Ok(read) => {
                        any = true;
                        // A full disk loses lines; it must not stop the command.
                        note(self.log.take(time_ms, *stream, &self.block[..read]));
                    }
                    Err(_) => break,
                }
            }
        }
        self.streams.retain(|(stream, _)| !ended.contains(stream));
        any
    }
}

fn note(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("log: {error}");
    }
}
