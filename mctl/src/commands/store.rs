//! `mctl store`: where a cluster is kept.

use super::backup::{Birth, Opened, because, open, read, write};
use crate::failure::{Exit, Failure, Outcome};
use crate::session::Terminal;
use crate::store_args::{MigrateArgs, Place, StoreCommand};

/// Runs the command.
pub async fn run(command: StoreCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        StoreCommand::Migrate(args) => migrate(args, terminal).await,
    }
}

/// An embedded store into an etcd, by way of a backup that stays.
async fn migrate(args: MigrateArgs, terminal: &mut Terminal) -> Outcome {
    if !args.etcd.is_given() {
        return Err(Failure::new("say where the cluster goes with --etcd"));
    }
    let from = Place {
        data_dir: Some(args.from.clone()),
        ..Place::default()
    };
    let source = Opened::at(&from, None).await?;
    let file = args.from.join(format!("before-etcd-{:032x}.backup", source.uid));
    if file.exists() {
        // Of an attempt before this one; what was written since shall not be lost.
        std::fs::remove_file(&file)?;
    }
    let header = write(&source, &file).await?;
    let to = Place {
        data_dir: None,
        etcd: args.etcd,
    };
    let birth = Birth {
        uid: header.uid,
        start: header.start(),
    };
    let target = Opened::at(&to, Some(birth)).await?;
    // Read again, as it will have to be if it is ever needed.
    muster_store::backup::inspect(open(&file)?).map_err(|error| because(&file, &error))?;
    let (count, _) = read(&target, &file, &header, None).await?;
    terminal.line(format!(
        "{}: {count} entries, cluster {:032x}",
        target.place, target.uid
    ))?;
    terminal.note(format!(
        "start the servers with --etcd from now on; {} is no longer used, and {} is what was in it",
        args.from.join("store.redb").display(),
        file.display()
    ));
    Ok(Exit::Done)
}
