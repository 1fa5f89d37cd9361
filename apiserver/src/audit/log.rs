//! The file that the audit log is: one thread writes it, and whoever has a line for it waits until it is written.
//!
//! It promises: whoever waits for a line knows whether it is in the file (given to the kernel; it is not synced); lines that wait are bounded in
//! number and bytes, and whoever finds no room waits, too. What could not be written is kept, up to a bound, and written first when that is
//! possible again; what is lost beyond it is counted and told. The file is never larger than said, and of the older ones so many are kept as
//! said. A file that was moved away, as logrotate does, is noticed before the next line. What must never happen here: a line that is dropped and
//! nobody knows; a part of a line that makes the next one unreadable. Tested below.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Lines that wait to be written: what a thousand requests at a time have to say. More wait before they are put in.
const QUEUE: usize = 1024;
/// Kilobytes of lines that wait: four of the largest, which hold a body and an answer of 3 MiB each.
const QUEUE_KIB: u32 = 24 << 10;
/// Lines that are written at once, so that a burst is one call to the kernel.
const BATCH: usize = 128;
/// Bytes that are kept while they cannot be written: some thousand events, far more than there are requests under way when it is noticed.
const OWED_BYTES: usize = 4 << 20;
/// How long somebody waits for a line. A disk that takes longer counts as one that cannot be written.
const WAIT: Duration = Duration::from_secs(5);

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where; `-`: standard output.
    pub path: PathBuf,
    /// The size of a file, in bytes, that it is not to exceed: the next one is begun before; 0: never.
    pub bytes: u64,
    /// How many older files are kept, as `PATH.1` (the newest) and so on; 0: all of them.
    pub files: u32,
}

/// What became of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They are written.
    pub written: u64,
    /// They are not and will not be.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Shared {
    failing: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
}

/// How somebody is told what became of a line.
type Written = oneshot::Sender<Result<(), Arc<io::Error>>>;

struct Line {
    text: Vec<u8>,
    /// `None`: nobody waits for it.
    written: Option<Written>,
    _room: OwnedSemaphorePermit,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    queue: mpsc::Sender<Line>,
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
    path: PathBuf,
}

/// Why a line is not in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It could not be written.
    #[error("the audit log {path} cannot be written: {why}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// It was not written in time; it may be, later.
    #[error("the audit log {path} takes longer than {} s to write a line", WAIT.as_secs())]
    Slow {
        /// The file.
        path: String,
    },
    /// The thread that writes has ended.
    #[error("the audit log {0} is closed")]
    Closed(String),
}

impl Log {
    /// Opens the file, and starts the thread that writes it; it ends when the log is dropped.
    pub fn open(kept: Kept) -> io::Result<Log> {
        let path = kept.path.clone();
        let writer = Writer::open(kept)?;
        let (queue, lines) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let told = shared.clone();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(writer, lines, &told))?;
        Ok(Log {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            shared,
            path,
        })
    }

    /// Whether the last lines could not be written.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Acquire)
    }

    /// What became of lines so far.
    pub fn counts(&self) -> Counts {
        Counts {
            written: self.shared.written.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
        }
    }

    /// Appends a line, which must end with a newline, and returns when it is written.
    pub async fn append(&self, text: Vec<u8>) -> Result<(), LogError> {
        let (written, done) = oneshot::channel();
        self.send(text, Some(written)).await?;
        let Ok(result) = tokio::time::timeout(WAIT, done).await else {
            return Err(self.slow());
        };
        let path = self.path.display().to_string();
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LogError::Write {
                path,
                why: error.to_string(),
            }),
            Err(_) => Err(LogError::Closed(path)),
        }
    }

    /// Appends a line, which must end with a newline, some time soon, and returns when there is room for it.
    pub async fn hand_over(&self, text: Vec<u8>) {
        // What happens to it is counted and told.
        let _ = self.send(text, None).await;
    }

    /// Appends a line, which must end with a newline, some time soon.
    pub fn post(self: &Arc<Self>, text: Vec<u8>) {
        let kib = kib(&text);
        if let Ok(room) = self.room.clone().try_acquire_many_owned(kib)
            && let Ok(slot) = self.queue.try_reserve()
        {
            return slot.send(Line {
                text,
                written: None,
                _room: room,
            });
        }
        let log = self.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { log.hand_over(text).await })),
            Err(_) => self.shared.lose(1, &io::Error::other("the server has ended")),
        }
    }

    /// Returns when everything that was appended or posted before has been written, as far as it can be.
    pub async fn flush(&self) {
        // Whether it could be written has been told.
        let _ = self.append(Vec::new()).await;
    }

    /// Puts a line into the queue. One for which there is no room in time is lost.
    async fn send(&self, text: Vec<u8>, written: Option<Written>) -> Result<(), LogError> {
        let put = async {
            let room = self.room.clone().acquire_many_owned(kib(&text)).await.ok()?;
            let line = Line {
                text,
                written,
                _room: room,
            };
            self.queue.send(line).await.ok()
        };
        let put = tokio::time::timeout(WAIT, put).await;
        if let Ok(Some(())) = put {
            return Ok(());
        }
        self.shared.lose(1, &io::Error::from(io::ErrorKind::TimedOut));
        Err(match put {
            Err(_) => self.slow(),
            Ok(_) => LogError::Closed(self.path.display().to_string()),
        })
    }

    fn slow(&self) -> LogError {
        let path = self.path.display().to_string();
        if !self.shared.failing.swap(true, Ordering::AcqRel) {
            tracing::error!(
                path,
                "the audit log takes too long to write; nothing is changed until it does not"
            );
        }
        LogError::Slow { path }
    }
}

/// What a line takes of the room. One that is larger than all of it takes all.
fn kib(text: &[u8]) -> u32 {
    u32::try_from(text.len() >> 10).unwrap_or(QUEUE_KIB).clamp(1, QUEUE_KIB)
}

impl Shared {
    fn lose(&self, lines: u64, error: &io::Error) {
        if self.lost.fetch_add(lines, Ordering::Relaxed) == 0 {
            tracing::error!(%error, "an event of the audit log is lost; muster_audit_events counts all that are");
        }
    }
}

fn write_all(mut writer: Writer, mut lines: mpsc::Receiver<Line>, shared: &Shared) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut owed = Owed::default();
    while let Some(first) = lines.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH {
            match lines.try_recv() {
                Ok(line) => batch.push(line),
                Err(_) => break,
            }
        }
        let before = owed.text.len();
        owed.take(&batch);
        let result = writer.write(&owed.text).map_err(Arc::new);
        match &result {
            Ok(()) => {
                shared.written.fetch_add(owed.lines, Ordering::Relaxed);
                owed = Owed::default();
                if shared.failing.swap(false, Ordering::AcqRel) {
                    tracing::warn!(path = %writer.kept.path.display(), "the audit log can be written again");
                }
            }
            Err(error) => {
                if !shared.failing.swap(true, Ordering::AcqRel) {
                    let path = writer.kept.path.display();
                    tracing::error!(%path, %error, "the audit log cannot be written; nothing is changed until it can be");
                }
                let dropped = owed.bound(before, &batch);
                if dropped > 0 {
                    shared.lose(dropped, error);
                }
            }
        }
        for line in batch.drain(..) {
            if let Some(written) = line.written {
                // Whoever does not wait any more has no use for it.
                let _ = written.send(result.clone());
            }
        }
    }
}

/// Lines that are to be written, in order; more than one batch only while they cannot be.
#[derive(Default)]
struct Owed {
    text: Vec<u8>,
    lines: u64,
}

impl Owed {
    fn take(&mut self, batch: &[Line]) {
        for line in batch.iter().filter(|line| !line.text.is_empty()) {
            self.text.extend_from_slice(&line.text);
            self.lines += 1;
        }
    }

    /// Forgets the last batch when there is too much; how many lines that were.
    fn bound(&mut self, before: usize, batch: &[Line]) -> u64 {
        if self.text.len() <= OWED_BYTES {
            return 0;
        }
        self.text.truncate(before);
        let dropped = batch.iter().filter(|line| !line.text.is_empty()).count() as u64;
        self.lines -= dropped;
        dropped
    }
}

struct Writer {
    kept: Kept,
    file: Option<Opened>,
    /// Whether a part of a line was left at the end.
    torn: bool,
}

struct Opened {
    file: File,
    device: u64,
    inode: u64,
}

impl Opened {
    fn is(&self, there: &Metadata) -> bool {
        (self.device, self.inode) == (there.dev(), there.ino())
    }
}

impl Writer {
    fn open(kept: Kept) -> io::Result<Writer> {
        let mut writer = Writer {
            kept,
            file: None,
            torn: false,
        };
        if !writer.is_stdout() {
            writer.at_its_place()?;
        }
        Ok(writer)
    }

    fn is_stdout(&self) -> bool {
        self.kept.path == Path::new("-")
    }

    /// The file that is at the path now, what it is, and whether it ends within a line.
    fn at_its_place(&mut self) -> io::Result<(&mut File, Metadata, bool)> {
        let there = match std::fs::metadata(&self.kept.path) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let current = self
            .file
            .take()
            .filter(|file| there.as_ref().is_some_and(|there| file.is(there)));
        let (opened, there) = match (current, there) {
            (Some(current), Some(there)) => (current, there),
            _ => {
                self.torn = false;
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&self.kept.path)?;
                let there = file.metadata()?;
                let (device, inode) = (there.dev(), there.ino());
                (Opened { file, device, inode }, there)
            }
        };
        Ok((&mut self.file.insert(opened).file, there, self.torn))
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if !self.is_stdout() {
            return self.write_to_file(text);
        }
        let mut out = io::stdout().lock();
        let end = if self.torn { out.write_all(b"\n") } else { Ok(()) };
        let written = end.and_then(|()| out.write_all(text)).and_then(|()| out.flush());
        self.torn = written.is_err();
        written
    }

    fn write_to_file(&mut self, text: &[u8]) -> io::Result<()> {
        let bound = self.kept.bytes;
        let (_, there, _) = self.at_its_place()?;
        let full = bound > 0 && there.len() > 0 && there.len() + text.len() as u64 > bound;
        if full && there.is_file() {
            self.rotate()?;
        }
        let (file, there, torn) = self.at_its_place()?;
        let end = if torn { file.write_all(b"\n") } else { Ok(()) };
        let Err(error) = end.and_then(|()| file.write_all(text)) else {
            self.torn = false;
            return Ok(());
        };
        // A part of a line would make the next one unreadable: it is taken back, or at least ended.
        let size = file.metadata().map(|now| now.len());
        let left = there.is_file() && size.is_ok_and(|size| size > there.len()) && file.set_len(there.len()).is_err();
        self.torn = torn || left;
        Err(error)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.kept.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Gives every older file the next number, and the file the first.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let free = (1..u32::MAX).find(|number| !self.numbered(*number).exists());
        let last = free.unwrap_or(u32::MAX).min(if self.kept.files == 0 {
            u32::MAX
        } else {
            self.kept.files
        });
        for number in (1..last).rev() {
            std::fs::rename(self.numbered(number), self.numbered(number + 1))?;
        }
        std::fs::rename(&self.kept.path, self.numbered(1))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn kept(directory: &Path, bytes: u64, files: u32) -> Kept {
        Kept {
            path: directory.join("audit.log"),
            bytes,
            files,
        }
    }

    async fn append(log: &Log, text: &str) {
        log.append(text.as_bytes().to_vec()).await.unwrap();
    }

    #[tokio::test]
    async fn a_line_is_in_the_file_when_its_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let log = Log::open(kept(directory.path(), 0, 0)).unwrap();
        for number in 0..3 {
            append(&log, &format!("{number}\n")).await;
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.ends_with(&format!("{number}\n")), "{text}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(log);
        let again = Arc::new(Log::open(kept(directory.path(), 0, 0)).unwrap());
        again.post(b"3\n".to_vec());
        again.flush().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "0\n1\n2\n3\n", "a restart goes on");
        assert_eq!(again.counts(), Counts { written: 1, lost: 0 });
    }

    #[tokio::test]
    async fn files_are_as_large_and_as_many_as_said_and_no_line_is_lost_between() {
        let directory = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let log = Log::open(kept(directory.path(), 20, 2)).unwrap();
        for number in 0..7 {
            append(&log, &format!("line {number}\n")).await;
        }
        assert_eq!(read("audit.log"), "line 6\n");
        assert_eq!(read("audit.log.1"), "line 4\nline 5\n");
        assert_eq!(read("audit.log.2"), "line 2\nline 3\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        drop(log);
        // Without a bound, none goes.
        let log = Log::open(kept(directory.path(), 20, 0)).unwrap();
        append(&log, "a line of its own\n").await;
        assert_eq!(
            (read("audit.log.1").as_str(), read("audit.log.3").as_str()),
            ("line 6\n", "line 2\nline 3\n")
        );
    }

    #[tokio::test]
    async fn a_file_that_was_moved_away_is_not_written_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(kept(directory.path(), 0, 0)).unwrap();
        append(&log, "one\n").await;
        let (path, moved) = (directory.path().join("audit.log"), directory.path().join("moved"));
        std::fs::rename(&path, &moved).unwrap();
        append(&log, "two\n").await;
        // What logrotate's `copytruncate` does.
        std::fs::copy(&path, directory.path().join("copied")).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        append(&log, "three\n").await;
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\n");
        assert_eq!(
            std::fs::read_to_string(directory.path().join("copied")).unwrap(),
            "two\n"
        );
        assert_eq!(std::fs::read_to_string(path).unwrap(), "three\n");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_known_and_is_written_when_that_is_possible_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let log = Log::open(kept(directory.path(), 0, 0)).unwrap();
        for text in ["one\n", "two\n"] {
            let error = log.append(text.as_bytes().to_vec()).await.unwrap_err().to_string();
            assert!(error.contains("audit.log cannot be written: No space left"), "{error}");
            assert!(log.is_failing());
        }
        assert_eq!(log.counts(), Counts::default(), "nothing is lost yet");
        std::fs::remove_file(&path).unwrap();
        append(&log, "three\n").await;
        assert!(!log.is_failing());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(log.counts(), Counts { written: 3, lost: 0 });
    }

    #[tokio::test]
    async fn what_is_more_than_can_be_kept_is_counted_as_lost() {
        let log = Log::open(Kept {
            path: PathBuf::from("/dev/full"),
            bytes: 0,
            files: 0,
        });
        let log = log.unwrap();
        let mut line = vec![b'x'; OWED_BYTES * 2 / 3];
        line.push(b'\n');
        log.append(line.clone()).await.unwrap_err();
        assert_eq!(log.counts().lost, 0);
        log.append(line).await.unwrap_err();
        assert_eq!(log.counts(), Counts { written: 0, lost: 1 });
        let directory = tempfile::tempdir().unwrap();
        assert!(Log::open(kept(&directory.path().join("none"), 0, 0)).is_err());
    }
}
