//! `mctl image`: the images of this machine, which the tasks of its agents run from.
//!
//! It works on the agent's directory of images and asks no server: it is to be run on the agent's own machine.

use std::path::PathBuf;

use muster_api::image::ImageReference;
use muster_runtime::Images;
use muster_runtime::images::ImageError;

use crate::cli::ImageCommand;
use crate::dev::default_data_dir;
use crate::failure::{Exit, Failure, Outcome};
use crate::session::Terminal;

/// Runs the command.
pub fn run(command: ImageCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        ImageCommand::Import { path, tag, images } => {
            let images = open(images)?;
            let imported = images.import(&path, &tag.to_string(), tag.digest());
            let imported = imported.map_err(|error| told(&format!("{}: ", path.display()), &error))?;
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
                imported.bytes as f64 / f64::from(1 << 20)
            ))?;
        }
        ImageCommand::List { images } => {
            for name in open(images)?.list().map_err(|error| told("", &error))? {
                terminal.line(name)?;
            }
        }
        ImageCommand::Delete { name, images } => {
            open(images)?
                .delete(&name.to_string())
                .map_err(|error| told("", &error))?;
            terminal.line(format!("image {name} deleted"))?;
        }
    }
    Ok(Exit::Done)
}

fn open(given: Option<PathBuf>) -> Outcome<Images> {
    let path = given.map_or_else(|| default_data_dir().map(|data| data.join("images")), Ok)?;
    let path = std::path::absolute(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(Images::new(path))
}

fn told(before: &str, error: &ImageError) -> Failure {
    Failure::new(format!("{before}{error}"))
}

/// The name of an image, as it is typed.
pub fn reference(text: &str) -> Result<ImageReference, String> {
    text.parse()
        .map_err(|error: muster_api::image::ImageReferenceError| error.to_string())
}
