//! `mctl image`: the images of this machine, which the tasks of its agents run from.
//!
//! It works on the agent's directory of images, or on the store of the containerd that the agent runs tasks with, and asks no server: it is
//! to be run on the agent's own machine.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use muster_agentd::runtimes::Choice;
use muster_api::image::ImageReference;
use muster_runtime::Images;
use muster_runtime::containerd::{NAMESPACE_DEFAULT, Store};

use crate::dev::default_data_dir;
use crate::failure::{Exit, Failure, Outcome};
use crate::session::Terminal;

/// Where the images of this machine's agent are.
#[derive(Clone, Debug, Args)]
pub struct ImagePlace {
    /// The runtime of the agent, as that was told: containerd[=SOCKET] keeps images itself; process has a directory of images.
    #[arg(long, default_value_t, value_name = "RUNTIME", conflicts_with = "images")]
    pub runtime: Choice,
    /// The directory of images [default: ~/.local/share/muster/images, that of `mctl dev`].
    #[arg(long, value_name = "DIRECTORY")]
    pub images: Option<PathBuf>,
}

/// `mctl image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Unpack an image where this machine's agent finds it.
    Import {
        /// An OCI layout (a directory, or a tar archive of one), or what `docker save` wrote.
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// What tasks call it, such as busybox:1.36.
        #[arg(long, value_name = "NAME", value_parser = reference)]
        tag: ImageReference,
        /// Where to.
        #[command(flatten)]
        place: ImagePlace,
    },
    /// Show which images are here.
    List {
        /// Where.
        #[command(flatten)]
        place: ImagePlace,
    },
    /// Delete an image that nobody runs from.
    Delete {
        /// Its name.
        #[arg(value_name = "NAME", value_parser = reference)]
        name: ImageReference,
        /// Where.
        #[command(flatten)]
        place: ImagePlace,
    },
}

/// Where images are.
enum Place {
    Directory(Images),
    Containerd(Store),
}

/// Runs the command.
pub async fn run(command: ImageCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        ImageCommand::Import { path, tag, place } => import(&path, &tag, open(place).await?, terminal).await?,
        ImageCommand::List { place } => {
            let names = match open(place).await? {
                Place::Directory(images) => images.list().map_err(|error| told("", &error))?,
                Place::Containerd(store) => store.list().await.map_err(|error| told("", &error))?,
            };
            for name in names {
                terminal.line(name)?;
            }
        }
        ImageCommand::Delete { name, place } => {
            let text = name.to_string();
            match open(place).await? {
                Place::Directory(images) => images.delete(&text).map_err(|error| told("", &error))?,
                Place::Containerd(store) => store.delete(&text).await.map_err(|error| told("", &error))?,
            }
            terminal.line(format!("image {name} deleted"))?;
        }
    }
    Ok(Exit::Done)
}

async fn import(path: &Path, tag: &ImageReference, place: Place, terminal: &mut Terminal) -> Outcome<()> {
    let (name, before) = (tag.to_string(), format!("{}: ", path.display()));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let images = match place {
        Place::Directory(images) => images,
        Place::Containerd(store) => {
            let stored = store.import(path, &name, tag.digest()).await;
            let stored = stored.map_err(|error| told(&before, &error))?;
            terminal.line(format!(
                "image {tag} imported ({}): {:.1} MiB",
                stored.digest,
                mib(stored.bytes)
            ))?;
            return Ok(());
        }
    };
    let imported = images.import(path, &name, tag.digest());
    let imported = imported.map_err(|error| told(&before, &error))?;
    if imported.skipped > 0 {
        let skipped = imported.skipped;
        terminal.note(format!(
            "{skipped} device nodes and the like were left out: tasks get devices from their agent"
        ));
    }
    let digest = imported.digest.map(|digest| format!(" ({digest})")).unwrap_or_default();
    terminal.line(format!(
        "image {tag} imported{digest}: {} files, {:.1} MiB",
        imported.files,
        mib(imported.bytes)
    ))?;
    Ok(())
}

async fn open(place: ImagePlace) -> Outcome<Place> {
    let socket = match place.images {
        Some(_) => None,
        None => place.runtime.socket().await,
    };
    if let Some(socket) = socket {
        let store = Store::new(&socket, NAMESPACE_DEFAULT).map_err(|error| told("", &error))?;
        return Ok(Place::Containerd(store));
    }
    let path: PathBuf = place
        .images
        .map_or_else(|| default_data_dir().map(|data| data.join("images")), Ok)?;
    let path = std::path::absolute(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(Place::Directory(Images::new(path)))
}

fn told(before: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("{before}{error}"))
}

/// The name of an image, as it is typed.
pub fn reference(text: &str) -> Result<ImageReference, String> {
    text.parse()
        .map_err(|error: muster_api::image::ImageReferenceError| error.to_string())
}
