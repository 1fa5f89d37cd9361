//! The log of a container: one file for both streams, and the one before it.
//!
//! A file starts with a header line that holds its generation, which rises with each rotation: a position is a generation and an offset, so it
//! means the same place before and after a rotation. Each further line is `<milliseconds> <stdout|stderr> <F|P> <bytes>`: F is a
//! whole line of output, P a piece that the next one continues (a very long line, or a prompt). Lines are written whole.
//!
//! What must never happen here: a file that a container can reach (it sees its sandbox only), or memory that grows with its output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::limits::{LOG_BYTES_DEFAULT, LOG_BYTES_MIN, LOG_CHUNK_BYTES, LOG_LINE_BYTES};
use crate::{Error, LogChunk, LogLine, LogPosition, LogQuery, Stream};

const CURRENT: &str = "log";
const BEFORE: &str = "log.1";
const MAGIC: &str = "muster-log ";

/// How much is read from a file at once.
const BLOCK: usize = 64 * 1024;

fn header(generation: u64) -> String {
    format!("{MAGIC}{generation:016}\n")
}

const HEADER_BYTES: u64 = 11 + 16 + 1;

/// Writes the log of one container.
pub(super) struct LogWriter {
    directory: PathBuf,
    file: File,
    generation: u64,
    written: u64,
    limit: u64,
    /// The beginnings of lines whose ends were not printed yet.
    pending: [Vec<u8>; 2],
}

impl LogWriter {
    /// Begins the log in the directory of a container.
    pub(super) fn begin(directory: &Path, log_bytes: u64) -> io::Result<LogWriter> {
        let limit = if log_bytes == 0 {
            LOG_BYTES_DEFAULT
        } else {
            log_bytes.max(LOG_BYTES_MIN)
        };
        Ok(LogWriter {
            file: begin_file(directory, 0)?,
            directory: directory.to_owned(),
            generation: 0,
            written: HEADER_BYTES,
            limit,
            pending: [Vec::new(), Vec::new()],
        })
    }

    /// Takes what was read from a stream.
    pub(super) fn take(&mut self, time_ms: i64, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(bytes.len() + bytes.len() / 8 + 64);
        let pending = &mut self.pending[stream as usize];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            for part in text.chunks(LOG_LINE_BYTES) {
                if pending.len() + part.len() > LOG_LINE_BYTES {
                    push_line(&mut lines, time_ms, stream, false, pending);
                    pending.clear();
                }
                pending.extend_from_slice(part);
            }
            if ends {
                push_line(&mut lines, time_ms, stream, true, pending);
                pending.clear();
            }
        }
        self.write(&lines)
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.iter().any(|pending| !pending.is_empty())
    }

    /// Writes the beginnings of lines out as pieces.
    pub(super) fn flush(&mut self, time_ms: i64) -> io::Result<()> {
        let mut lines = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let pending = std::mem::take(&mut self.pending[stream as usize]);
            if !pending.is_empty() {
                push_line(&mut lines, time_ms, stream, false, &pending);
            }
        }
        self.write(&lines)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.written > HEADER_BYTES && self.written + lines.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.written += lines.len() as u64;
        self.file.write_all(lines)
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(self.directory.join(CURRENT), self.directory.join(BEFORE))?;
        self.generation += 1;
        self.file = begin_file(&self.directory, self.generation)?;
        self.written = HEADER_BYTES;
        Ok(())
    }
}

fn push_line(lines: &mut Vec<u8>, time_ms: i64, stream: Stream, full: bool, text: &[u8]) {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if full { 'F' } else { 'P' };
    lines.extend_from_slice(format!("{time_ms} {name} {tag} ").as_bytes());
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

/// Makes the file under another name first: a reader never sees one without its header.
fn begin_file(directory: &Path, generation: u64) -> io::Result<File> {
    let new = directory.join("log.new");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(header(generation).as_bytes())?;
    fs::rename(new, directory.join(CURRENT))?;
    Ok(file)
}

/// A log file, opened.
struct Opened {
    generation: u64,
    file: File,
    /// Where it ended when it was opened.
    end: u64,
}

/// Reads the part of a container's log that the query asks for. `exited` says that nothing will be written any more; it must have been
/// found out before this call.
pub(super) fn read(directory: &Path, query: &LogQuery, exited: bool) -> Result<LogChunk, Error> {
    let failed = |error: io::Error| Error::System {
        context: "reading the log".to_owned(),
        message: error.to_string(),
    };
    let files = open(directory).map_err(failed)?;
    let Some(last) = files.last() else {
        // Created, and not begun yet.
        return Ok(LogChunk {
            lines: Vec::new(),
            position: position(0, HEADER_BYTES),
            end: exited,
        });
    };
    let beginning = (files[0].generation, HEADER_BYTES);
    let (mut generation, mut offset) = match (&query.after, query.tail) {
        (Some(after), _) => {
            let after = parse_position(after)?;
            let newest = (last.generation, last.end);
            after.clamp(beginning, newest)
        }
        (None, Some(tail)) => find_tail(&files, tail).map_err(failed)?,
        (None, None) => beginning,
    };
    let (mut lines, mut bytes) = (Vec::new(), 0);
    let first = generation;
    for file in files.iter().filter(|file| file.generation >= first) {
        if file.generation > generation {
            (generation, offset) = (file.generation, HEADER_BYTES);
        }
        offset = read_lines(file, offset, query.since_ms, &mut lines, &mut bytes).map_err(failed)?;
        if bytes >= LOG_CHUNK_BYTES {
            break;
        }
    }
    let end = exited && generation == last.generation && offset >= last.end;
    Ok(LogChunk {
        lines,
        position: position(generation, offset),
        end,
    })
}

fn position(generation: u64, offset: u64) -> LogPosition {
    LogPosition(format!("{generation}:{offset}"))
}

fn parse_position(LogPosition(text): &LogPosition) -> Result<(u64, u64), Error> {
    let parts = text
        .split_once(':')
        .and_then(|(generation, offset)| Some((generation.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| Error::Invalid(format!("log position {text:?}")))
}

/// The files there are, oldest first. Opened newest first: when one is rotated in between, the same one is found again, and all is tried once
/// more.
fn open(directory: &Path) -> io::Result<Vec<Opened>> {
    loop {
        let Some(current) = open_file(&directory.join(CURRENT))? else {
            // Between the two renames of a rotation there is only the one before.
            return Ok(open_file(&directory.join(BEFORE))?.into_iter().collect());
        };
        match open_file(&directory.join(BEFORE))? {
            Some(before) if before.generation + 1 == current.generation => return Ok(vec![before, current]),
            Some(_) => {}
            None => return Ok(vec![current]),
        }
    }
}

fn open_file(path: &Path) -> io::Result<Option<Opened>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut head = [0; HEADER_BYTES as usize];
    file.read_exact(&mut head)?;
    let text = std::str::from_utf8(&head)
        .ok()
        .and_then(|text| text.strip_prefix(MAGIC));
    let generation = text.and_then(|text| text.trim_end().parse().ok());
    let generation = generation.ok_or_else(|| io::Error::other(format!("{} has no header", path.display())))?;
    let end = file.metadata()?.len();
    Ok(Some(Opened { generation, file, end }))
}

/// Adds lines from the offset on, until the chunk is full or no whole line is left; returns where it stopped.
fn read_lines(
    opened: &Opened,
    mut offset: u64,
    since_ms: Option<i64>,
    lines: &mut Vec<LogLine>,
    bytes: &mut usize,
) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let read = opened.file.read_at(&mut block, offset + rest.len() as u64)?;
        if read == 0 {
            return Ok(offset);
        }
        rest.extend_from_slice(&block[..read]);
        let mut used = 0;
        while let Some(length) = rest[used..].iter().position(|byte| *byte == b'\n') {
            let record = &rest[used..used + length];
            used += length + 1;
            // What does not parse was torn by a full disk.
            if let Some(line) =
                parse_line(record).filter(|line| since_ms.is_none_or(|since_ms| line.time_ms >= since_ms))
            {
                *bytes += line.bytes.len() + size_of::<LogLine>();
                lines.push(line);
                if *bytes >= LOG_CHUNK_BYTES {
                    break;
                }
            }
        }
        offset += used as u64;
        rest.drain(..used);
        if *bytes >= LOG_CHUNK_BYTES {
            return Ok(offset);
        }
    }
}

fn parse_line(record: &[u8]) -> Option<LogLine> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let time_ms = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let full = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let mut bytes = parts.next()?.to_vec();
    if full {
        bytes.push(b'\n');
    }
    Some(LogLine { time_ms, stream, bytes })
}

/// Where the last `count` lines begin. Reads backwards, so its cost is that of the lines and not of the log.
fn find_tail(files: &[Opened], count: usize) -> io::Result<(u64, u64)> {
    let mut missing = count;
    let mut begin = files
        .last()
        .map_or((0, HEADER_BYTES), |last| (last.generation, last.end));
    for opened in files.iter().rev() {
        let mut starts = LineStarts {
            opened,
            next: opened.end,
            block: Vec::new(),
            block_start: opened.end,
        };
        while missing > 0 {
            let Some(start) = starts.previous()? else { break };
            begin = (opened.generation, start);
            missing -= 1;
        }
    }
    Ok(begin)
}

/// The starts of the lines of a file, last first.
struct LineStarts<'a> {
    opened: &'a Opened,
    /// The start that was given last.
    next: u64,
    block: Vec<u8>,
    block_start: u64,
}

impl LineStarts<'_> {
    fn previous(&mut self) -> io::Result<Option<u64>> {
        if self.next <= HEADER_BYTES {
            return Ok(None);
        }
        // The byte before a start is the newline of the line before; look from there for the newline before that.
        let mut at = self.next - 1;
        while at > HEADER_BYTES {
            if at <= self.block_start {
                let start = at.saturating_sub(BLOCK as u64).max(HEADER_BYTES);
                self.block.resize((at - start) as usize, 0);
                self.opened.file.read_exact_at(&mut self.block, start)?;
                self.block_start = start;
            }
            if self.block[(at - 1 - self.block_start) as usize] == b'\n' {
                break;
            }
            at -= 1;
        }
        self.next = at;
        Ok(Some(at))
    }
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
