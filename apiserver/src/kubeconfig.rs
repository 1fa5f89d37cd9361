//! The file that tells kubectl, `mctl` and every other client where the server is and who its user is.
//!
//! Everything is in the file itself: the CA and the token, so it is as secret as they are. Merging into another file keeps
//! whatever else that file has, in its order. Tested below and by kubectl.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde_yaml::{Mapping, Value};

use crate::files;

/// The name of the cluster, the user and the context that are written.
pub const NAME: &str = "muster";

/// What a client needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where, as in `https://127.0.0.1:6443`.
    pub server: String,
    /// The certificate of the cluster's CA.
    pub ca_pem: String,
    /// The user's bearer token.
    pub token: String,
}

/// What can go wrong with such a file.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that is to be merged into is no kubeconfig.
    #[error("{} is not a kubeconfig, so it is left as it is: {problem}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// Writes a file of its own: one cluster, one user, one context.
pub fn write(path: &Path, access: &Access) -> Result<(), KubeconfigError> {
    let mut config = Mapping::new();
    put(&mut config, access);
    save(path, &config)
}

/// Puts the cluster, the user and the context into the file, which is made when it is not there, and makes the context the current one.
/// What else is in it stays.
pub fn merge(path: &Path, access: &Access) -> Result<(), KubeconfigError> {
    let malformed = |problem: String| KubeconfigError::Malformed {
        path: path.to_owned(),
        problem,
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            return Err(KubeconfigError::File {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut config = match serde_yaml::from_str(&text).map_err(|error| malformed(error.to_string()))? {
        Value::Mapping(config) => config,
        Value::Null => Mapping::new(),
        _ => return Err(malformed("it is not a mapping".to_owned())),
    };
    for list in ["clusters", "users", "contexts"] {
        match config.get(list) {
            None | Some(Value::Null | Value::Sequence(_)) => {}
            Some(_) => return Err(malformed(format!("`{list}` is not a list"))),
        }
    }
    put(&mut config, access);
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        files::private_directory(directory).map_err(|source| KubeconfigError::File {
            path: directory.to_owned(),
            source,
        })?;
    }
    save(path, &config)
}

fn put(config: &mut Mapping, access: &Access) {
    let text = |text: &str| Value::String(text.to_owned());
    let ca = base64::engine::general_purpose::STANDARD.encode(&access.ca_pem);
    for (name, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        config.insert(text(name), text(value));
    }
    let cluster = [
        ("certificate-authority-data", ca.as_str()),
        ("server", access.server.as_str()),
    ];
    named(config, "clusters", "cluster", &cluster);
    named(config, "users", "user", &[("token", access.token.as_str())]);
    named(
        config,
        "contexts",
        "context",
        &[("cluster", NAME), ("user", NAME), ("namespace", "default")],
    );
    config.insert(text("current-context"), text(NAME));
    if !config.contains_key("preferences") {
        config.insert(text("preferences"), Value::Mapping(Mapping::new()));
    }
}

/// Puts the entry [`NAME`] into a list of named entries, in the place of one that is there.
fn named(config: &mut Mapping, list: &str, field: &str, fields: &[(&str, &str)]) {
    let text = |text: &str| Value::String(text.to_owned());
    let inner: Mapping = fields.iter().map(|(name, value)| (text(name), text(value))).collect();
    let entry: Mapping = [(text("name"), text(NAME)), (text(field), Value::Mapping(inner))]
        .into_iter()
        .collect();
    let entry = Value::Mapping(entry);
    let mut entries = match config.remove(list) {
        Some(Value::Sequence(entries)) => entries,
        _ => Vec::new(),
    };
    match entries
        .iter_mut()
        .find(|entry| entry.get("name").and_then(Value::as_str) == Some(NAME))
    {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
    config.insert(text(list), Value::Sequence(entries));
}

fn save(path: &Path, config: &Mapping) -> Result<(), KubeconfigError> {
    let text = serde_yaml::to_string(config).expect("a mapping of texts is YAML");
    files::write_private(path, text.as_bytes()).map_err(|source| KubeconfigError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn access(server: &str) -> Access {
        Access {
            server: server.to_owned(),
            ca_pem: "PEM".to_owned(),
            token: "t".to_owned(),
        }
    }

    fn read(path: &Path) -> Value {
        serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_file_has_all_that_a_client_needs_and_is_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        write(&path, &access("https://127.0.0.1:1")).unwrap();
        let config = read(&path);
        assert_eq!(config["current-context"], "muster");
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:1");
        assert_eq!(config["clusters"][0]["cluster"]["certificate-authority-data"], "UEVN");
        assert_eq!(config["users"][0]["user"]["token"], "t");
        assert_eq!(config["contexts"][0]["context"]["cluster"], "muster");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn merging_keeps_what_others_have_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/config");
        merge(&path, &access("https://one")).unwrap();
        let other = "apiVersion: v1\nkind: Config\ncurrent-context: prod\nextra: {a: 1}\nclusters:\n- name: prod\n  cluster: {server: https://prod}\n\
                     - name: muster\n  cluster: {server: https://old}\nusers:\n- name: me\n  user: {exec: {command: x}}\ncontexts: null\n";
        std::fs::write(&path, other).unwrap();
        for _ in 0..2 {
            merge(&path, &access("https://two")).unwrap();
            let config = read(&path);
            assert_eq!(config["current-context"], "muster");
            assert_eq!(config["extra"]["a"], 1);
            assert_eq!(config["clusters"].as_sequence().unwrap().len(), 2);
            assert_eq!(config["clusters"][0]["cluster"]["server"], "https://prod");
            assert_eq!(config["clusters"][1]["cluster"]["server"], "https://two");
            assert_eq!(config["users"][0]["user"]["exec"]["command"], "x");
            assert_eq!(config["users"][1]["name"], "muster");
            assert_eq!(config["contexts"].as_sequence().unwrap().len(), 1);
        }
    }

    #[test]
    fn what_is_no_kubeconfig_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        for text in ["- a\n- b\n", "clusters: 7\n", "a: [\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(
                matches!(merge(&path, &access("x")), Err(KubeconfigError::Malformed { .. })),
                "{text}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
