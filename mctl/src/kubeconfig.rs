//! Where the cluster is and who we are: files in kubectl's format.
//!
//! In this order: `--kubeconfig`, `MUSTER_CONFIG`, `KUBECONFIG`, `~/.config/muster/config`. The first that is given is used; each
//! may name several files, separated by colons, the first of which to say something wins.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kube::config::{Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};

use crate::failure::{Failure, Outcome};

/// Which file, and which context of it.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// `--kubeconfig`.
    pub file: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
}

/// The file that is written to, and read when nothing else is said.
pub fn own_file() -> Outcome<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let directory = directory.ok_or_else(|| {
        Failure::new("neither HOME nor XDG_CONFIG_HOME is set, so there is no place for the configuration")
    })?;
    Ok(directory.join("muster").join("config"))
}

/// The files that are read, and who named them.
pub fn files(choice: &Choice) -> Outcome<(Vec<PathBuf>, String)> {
    if let Some(file) = &choice.file {
        return Ok((vec![file.clone()], "--kubeconfig".to_owned()));
    }
    let list = |value: &OsString| {
        env::split_paths(value)
            .filter(|path| !path.as_os_str().is_empty())
            .collect::<Vec<_>>()
    };
    for name in ["MUSTER_CONFIG", "KUBECONFIG"] {
        if let Some(files) = env::var_os(name)
            .map(|value| list(&value))
            .filter(|files| !files.is_empty())
        {
            return Ok((files, name.to_owned()));
        }
    }
    Ok((vec![own_file()?], String::new()))
}

/// Reads the configuration.
pub fn read(choice: &Choice) -> Outcome<Kubeconfig> {
    let (files, from) = files(choice)?;
    let mut merged: Option<Kubeconfig> = None;
    for file in &files {
        if !file.exists() {
            continue;
        }
        let next = Kubeconfig::read_from(file)
            .map_err(|error| Failure::new(format!("{}: {}", file.display(), chain(&error))))?;
        merged = Some(match merged {
            None => next,
            Some(before) => before
                .merge(next)
                .map_err(|error| Failure::new(format!("{}: {}", file.display(), chain(&error))))?,
        });
    }
    merged.ok_or_else(|| none(&files, &from))
}

fn none(files: &[PathBuf], from: &str) -> Failure {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let names = names.join(", ");
    if from.is_empty() {
        return Failure::new(format!(
            "there is no cluster to talk to: {names} does not exist\n\
             start one on this machine:   mctl dev\n\
             or name one that there is:   --kubeconfig FILE, MUSTER_CONFIG or KUBECONFIG"
        ));
    }
    Failure::new(format!("{from} names {names}, which does not exist"))
}

/// What the client needs: server, trust, identity, namespace.
pub async fn load(choice: &Choice) -> Outcome<kube::Config> {
    let config = read(choice)?;
    let options = kube::config::KubeConfigOptions {
        context: choice.context.clone(),
        ..Default::default()
    };
    let contexts: Vec<String> = config.contexts.iter().map(|context| context.name.clone()).collect();
    let loaded = kube::Config::from_custom_kubeconfig(config, &options).await;
    let mut config = loaded.map_err(|error| {
        let known = if contexts.is_empty() {
            "none".to_owned()
        } else {
            contexts.join(", ")
        };
        match &choice.context {
            Some(name) if !contexts.contains(name) => {
                Failure::new(format!("there is no context `{name}`; contexts: {known}"))
            }
            _ => Failure::new(format!(
                "the configuration cannot be used: {}; contexts: {known}",
                chain(&error)
            )),
        }
    })?;
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    // Retries are made by the callers that can tell whether one helps.
    config.default_retry = false;
    Ok(config)
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// A configuration of one cluster, one user and one context, all of the same name.
pub fn single(name: &str, server: &str, ca_pem: &str, token: &str) -> Kubeconfig {
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": base64(ca_pem.as_bytes())}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
        "preferences": {},
    });
    serde_json::from_value(value).expect("the text above is a configuration")
}

/// Standard base64, padded.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Writes a configuration that only its owner may read, at once or not at all.
pub fn write(path: &Path, config: &Kubeconfig) -> Outcome<()> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    let value = serde_json::to_value(config).map_err(|error| Failure::new(error.to_string()))?;
    let text = crate::output::yaml(&without_nulls(value));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        // What is left over is not worth a second error.
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Adds the parts of `add` to the configuration in `path`, in place of those of the same names, and makes its context the current one.
pub fn merge_into(path: &Path, add: &Kubeconfig) -> Outcome<()> {
    let mut config = if path.exists() {
        Kubeconfig::read_from(path).map_err(|error| Failure::new(format!("{}: {}", path.display(), chain(&error))))?
    } else {
        Kubeconfig::default()
    };
    replace(&mut config.clusters, &add.clusters, |cluster: &NamedCluster| {
        &cluster.name
    });
    replace(&mut config.auth_infos, &add.auth_infos, |user: &NamedAuthInfo| {
        &user.name
    });
    replace(&mut config.contexts, &add.contexts, |context: &NamedContext| {
        &context.name
    });
    config.current_context.clone_from(&add.current_context);
    config.kind = Some("Config".to_owned());
    config.api_version = Some("v1".to_owned());
    write(path, &config)
}

fn replace<T: Clone>(into: &mut Vec<T>, from: &[T], name: fn(&T) -> &String) {
    for item in from {
        into.retain(|known| name(known) != name(item));
        into.push(item.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_added_and_becomes_the_current_one() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("deep/config");
        merge_into(&path, &single("one", "https://127.0.0.1:1", "pem", "token: #1")).expect("written");
        merge_into(&path, &single("two", "https://127.0.0.1:2", "pem", "t2")).expect("written");
        merge_into(&path, &single("one", "https://127.0.0.1:3", "pem", "t3")).expect("written");
        let config = Kubeconfig::read_from(&path).expect("readable");
        assert_eq!(config.current_context.as_deref(), Some("one"));
        let servers: Vec<_> = config
            .clusters
            .iter()
            .filter_map(|named| named.cluster.as_ref()?.server.as_deref())
            .collect();
        assert_eq!(servers, ["https://127.0.0.1:2", "https://127.0.0.1:3"]);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).expect("file"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_context_that_is_not_there_is_named_with_those_that_are() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("config");
        write(&path, &single("one", "https://127.0.0.1:1", "pem", "t")).expect("written");
        let choice = Choice {
            file: Some(path),
            context: Some("two".to_owned()),
        };
        let failure = load(&choice).await.expect_err("no such context");
        assert_eq!(failure.to_string(), "there is no context `two`; contexts: one");
        let missing = Choice {
            file: Some(directory.path().join("x")),
            context: None,
        };
        assert!(
            load(&missing)
                .await
                .expect_err("no file")
                .to_string()
                .contains("which does not exist")
        );
    }
}
