//! `mctl backup`: a cluster into a file and back, without a server.
//!
//! An embedded store is opened as a server would open it, so its server has to be stopped. An etcd is read while servers go on. A
//! restore goes into a new directory or prefix only.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use muster_api::env::{Env as _, SystemEnv};
use muster_apiserver::restore::{Fate, NewCluster};
use muster_store::backup::{self, BackupError, Header};
use muster_store::embedded::Options;
use muster_store::{EmbeddedStore, EtcdConfig, EtcdStore, Key, Store};

use crate::dev::directory::{self, Directory};
use crate::failure::{Exit, Failure, Outcome};
use crate::kubeconfig::chain;
use crate::session::Terminal;
use crate::store_args::{BackupCommand, Place, RestoreArgs, SaveArgs};

/// Runs the command.
pub async fn run(command: BackupCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        BackupCommand::Save(args) => save(args, terminal).await,
        BackupCommand::Inspect { file } => {
            let header = backup::inspect(open(&file)?).map_err(|error| because(&file, &error))?;
            terminal.line(describe(&header))?;
            Ok(Exit::Done)
        }
        BackupCommand::Restore(args) => restore(args, terminal).await,
    }
}

/// A store that is open, and what it is.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    pub(super) uid: u128,
    /// Says where it is.
    pub(super) place: String,
    _lock: Option<Directory>,
}

/// What a store becomes that does not exist yet.
#[derive(Clone, Copy)]
pub(super) struct Birth {
    pub(super) uid: u128,
    pub(super) start: u64,
}

impl Opened {
    /// Opens what is at a place. Without `birth` it has to be there.
    pub(super) async fn at(place: &Place, birth: Option<Birth>) -> Outcome<Opened> {
        let Birth { uid, start } = birth.unwrap_or(Birth { uid: 0, start: 0 });
        if place.etcd.is_given() {
            let config = EtcdConfig {
                uid,
                start,
                create: birth.is_some(),
                // Whoever serves the cluster sees to it.
                compaction: None,
                ..place.etcd.config()?
            };
            let place = format!("{} in etcd", config.prefix);
            let opened = EtcdStore::open(config).await;
            let store = opened.map_err(|error| Failure::new(format!("{place}: {error}")))?;
            let uid = store.store_uid();
            return Ok(Opened {
                store: Arc::new(store),
                uid,
                place,
                _lock: None,
            });
        }
        let path = place
            .data_dir
            .clone()
            .map_or_else(|| directory::default("muster"), Ok)?;
        let file = path.join("store.redb");
        if birth.is_none() && !file.exists() {
            return Err(Failure::new(format!(
                "{} holds no cluster; say which one with --data-dir or --etcd",
                path.display()
            )));
        }
        let lock = Directory::take(&path)?;
        let options = Options {
            uid,
            start,
            ..Options::default()
        };
        let opened = EmbeddedStore::open(&file, &options);
        let store = opened.map_err(|error| Failure::new(error.to_string()))?;
        let uid = store.store_uid();
        Ok(Opened {
            store: Arc::new(store),
            uid,
            place: path.display().to_string(),
            _lock: Some(lock),
        })
    }
}

async fn save(args: SaveArgs, terminal: &mut Terminal) -> Outcome {
    let opened = Opened::at(&args.place, None).await?;
    let header = write(&opened, &args.file).await?;
    terminal.line(format!("{}: {}", args.file.display(), describe(&header)))?;
    terminal.note("certificates and tokens lie beside the store and are not in it");
    Ok(Exit::Done)
}

/// Saves into a new file, which has its name only when it is whole.
pub(super) async fn write(opened: &Opened, path: &Path) -> Outcome<Header> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    if path.exists() {
        return Err(Failure::new(format!(
            "{} exists already; choose another name",
            path.display()
        )));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut options = OpenOptions::new();
    // It holds everything, secrets too.
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed)?;
    let now = u64::try_from(SystemEnv.now().as_millisecond()).unwrap_or(0);
    let saved = backup::save(&*opened.store, opened.uid, now, &mut file).await;
    let header = saved.map_err(|error| because(path, &error))?;
    file.flush().and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&part, path).map_err(failed)?;
    Ok(header)
}

async fn restore(args: RestoreArgs, terminal: &mut Terminal) -> Outcome {
    let header = backup::inspect(open(&args.file)?).map_err(|error| because(&args.file, &error))?;
    let uid = if args.new_cluster {
        SystemEnv.uid().as_u128()
    } else {
        header.uid
    };
    let birth = Birth {
        uid,
        start: header.start(),
    };
    let opened = Opened::at(&args.place, Some(birth)).await?;
    if args.new_cluster && opened.uid == header.uid {
        return Err(Failure::new(format!(
            "{} is the cluster that was saved, not a new one",
            opened.place
        )));
    }
    let new = args.new_cluster.then(|| NewCluster {
        now: SystemEnv.now(),
        keep_pending: args.keep_pending,
    });
    let (count, ended) = read(&opened, &args.file, &header, new).await?;
    terminal.line(format!(
        "{}: {count} entries, cluster {:032x}",
        opened.place, opened.uid
    ))?;
    if ended > 0 {
        terminal.note(format!(
            "{ended} tasks had not ended; they are Dropped now, with reason Restored"
        ));
    }
    Ok(Exit::Done)
}

/// Restores, and returns how many entries there are and how many tasks were ended.
pub(super) async fn read(
    opened: &Opened,
    path: &Path,
    header: &Header,
    new: Option<NewCluster>,
) -> Outcome<(u64, usize)> {
    if new.is_none() && opened.uid != header.uid {
        return Err(Failure::new(format!(
            "{} belongs to another cluster ({:032x}) than the backup ({:032x}); restore into a new place, or use --new-cluster",
            opened.place, opened.uid, header.uid
        )));
    }
    let mut ended = 0;
    let fate = |key: &Key, value: Bytes| match new.map_or(Fate::Kept, |new| new.fate(key, &value)) {
        Fate::Kept => backup::Fate::Keep(value),
        Fate::Changed(value) => backup::Fate::Keep(value),
        Fate::Ended(value) => {
            ended += 1;
            backup::Fate::Keep(value)
        }
        Fate::Dropped => backup::Fate::Drop,
    };
    let restored = backup::restore(open(path)?, &*opened.store, fate).await;
    let count = restored.map_err(|error| Failure::new(format!("{}: {}", opened.place, chain(&error))))?;
    Ok((count, ended))
}

pub(super) fn open(path: &Path) -> Outcome<File> {
    File::open(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

pub(super) fn because(path: &Path, error: &BackupError) -> Failure {
    Failure::new(format!("{}: {}", path.display(), chain(error)))
}

fn describe(header: &Header) -> String {
    let taken = i64::try_from(header.taken_ms)
        .ok()
        .and_then(|taken| Timestamp::from_millisecond(taken).ok());
    let taken = taken.map_or_else(
        || "at an unknown time".to_owned(),
        |taken| taken.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    );
    format!(
        "{} entries of the cluster {:032x} at revision {}, taken {taken}",
        header.entries, header.uid, header.revision
    )
}
