//! What an image says about how it wants to be run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::{ImageError, failed, invalid};
use crate::User;
use crate::limits::IMAGE_DOCUMENT_BYTES;

/// What holds for a container where it does not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// What is run; arguments follow.
    pub entrypoint: Vec<String>,
    /// The arguments, or the whole command when there is no entrypoint.
    pub args: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Where the command starts.
    pub working_dir: Option<PathBuf>,
    /// Who it runs as.
    pub user: Option<User>,
}

impl Defaults {
    /// The command line, by the rules of Kubernetes: a command replaces entrypoint and arguments of the image, arguments alone replace its
    /// arguments.
    pub fn argv(&self, command: &[String], args: &[String]) -> Vec<String> {
        match (command.is_empty(), args.is_empty()) {
            (false, _) => [command, args].concat(),
            (true, false) => [&self.entrypoint, args].concat(),
            (true, true) => [self.entrypoint.as_slice(), &self.args].concat(),
        }
    }
}

/// The part of a runtime bundle's configuration that counts here.
#[derive(Deserialize)]
struct Bundle {
    process: Option<BundleProcess>,
}

#[derive(Deserialize)]
struct BundleProcess {
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    cwd: Option<PathBuf>,
    user: Option<User>,
}

/// Reads the configuration of an unpacked image.
pub(super) fn read(directory: &Path, rootfs: &Path) -> Result<Defaults, ImageError> {
    let image = directory.join("image.json");
    if image.is_file() {
        return of_image(&document(&image)?, &[rootfs.to_owned()]);
    }
    let path = directory.join("config.json");
    let bundle: Bundle =
        serde_json::from_slice(&document(&path)?).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    let Some(process) = bundle.process else {
        return Ok(Defaults::default());
    };
    Ok(Defaults {
        entrypoint: Vec::new(),
        args: process.args,
        env: environment(&process.env),
        working_dir: process.cwd.filter(|cwd| cwd != Path::new("/")),
        user: process.user,
    })
}

fn document(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |error| failed(format!("reading {}", path.display()))(error);
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > IMAGE_DOCUMENT_BYTES {
        return Err(invalid(format!(
            "{} is larger than {IMAGE_DOCUMENT_BYTES} bytes",
            path.display()
        )));
    }
    fs::read(path).map_err(failed)
}

/// Reads the configuration that came with an image. `roots`: the directories that together are its root, the uppermost first.
pub(crate) fn of_image(bytes: &[u8], roots: &[PathBuf]) -> Result<Defaults, ImageError> {
    let image: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("the configuration of the image: {error}")))?;
    let Some(config) = image.config() else {
        return Ok(Defaults::default());
    };
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(Defaults {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        args: config.cmd().clone().unwrap_or_default(),
        env: environment(config.env().as_deref().unwrap_or_default()),
        working_dir: text(config.working_dir())
            .map(PathBuf::from)
            .filter(|path| path.is_absolute()),
        user: text(config.user()).map(|user| resolve(&user, roots)).transpose()?,
    })
}

fn environment(pairs: &[String]) -> BTreeMap<String, String> {
    let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
    let named = pairs.filter(|(name, _)| !name.is_empty());
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `user[:group]`, by number or by a name of the image's own files.
fn resolve(text: &str, roots: &[PathBuf]) -> Result<User, ImageError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str, name: &str| {
        invalid(format!(
            "the image runs as {what} `{name}`, which it does not have; set spec.user"
        ))
    };
    let line = |file: &str, name: &str| {
        let lines = roots.iter().find_map(|root| inside(root, file)).unwrap_or_default();
        let found = lines.lines().find(|line| line.split(':').next() == Some(name));
        found.map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
    };
    let field = |fields: &Vec<String>, at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok());
    let (uid, primary) = match user.parse::<u32>() {
        Ok(uid) => (uid, None),
        Err(_) => {
            let fields = line("etc/passwd", user).ok_or_else(|| unknown("user", user))?;
            (
                field(&fields, 2).ok_or_else(|| unknown("user", user))?,
                field(&fields, 3),
            )
        }
    };
    let gid = match group.map(str::parse::<u32>) {
        None => primary.unwrap_or(0),
        Some(Ok(gid)) => gid,
        Some(Err(_)) => {
            let group = group.unwrap_or_default();
            let fields = line("etc/group", group).ok_or_else(|| unknown("group", group))?;
            field(&fields, 2).ok_or_else(|| unknown("group", group))?
        }
    };
    Ok(User { uid, gid })
}

/// A file as a container would see it: its links do not leave the image.
fn inside(rootfs: &Path, file: &str) -> Option<String> {
    let root = File::open(rootfs).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(root.as_fd(), file, how).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(IMAGE_DOCUMENT_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}
