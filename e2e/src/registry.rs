//! A registry of images: Debian's `docker-registry`, on a port that it chooses, with what it keeps in a directory that goes with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A running registry. Dropping it ends it.
pub struct Registry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
    /// What has to be shown to it, as `user:password`.
    login: Option<&'static str>,
}

/// The password `word` of the user `user`, as `htpasswd -B` writes it.
const LOGIN: (&str, &str) = (
    "user:word",
    "$2b$05$AmTSYXnll2NgeC0lchKWTeixehjwa54AK7bTgipOiM/4xo7UvM9Lq",
);

impl Registry {
    /// Starts one; when it is closed, for the user `user` with the password `word` only.
    pub fn start(closed: bool) -> Result<Registry> {
        let directory = tempfile::tempdir()?;
        let at = directory.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {at}/store}}}}\nhttp: {{addr: 127.0.0.1:0}}\n"
        );
        if closed {
            fs::write(directory.path().join("passwords"), format!("user:{}\n", LOGIN.1))?;
            config += &format!("auth: {{htpasswd: {{realm: here, path: {at}/passwords}}}}\n");
        }
        let file = directory.path().join("config.yml");
        fs::write(&file, config)?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("apt-get install --no-install-recommends docker-registry")?;
        let mut log = BufReader::new(child.stderr.take().context("its log")?);
        let mut said = String::new();
        let address = loop {
            let before = said.len();
            ensure!(log.read_line(&mut said)? > 0, "the registry has ended: {said}");
            if let Some((_, address)) = said[before..].split_once("listening on ") {
                break address.split(['"', ',', '\n']).next().unwrap_or_default().to_owned();
            }
        };
        // Or it would stop when nobody reads on.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let login = closed.then_some(LOGIN.0);
        Ok(Registry {
            child,
            address,
            directory,
            login,
        })
    }

    /// What the image `rest` of this registry is called.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn curl(&self, args: &[&str]) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail"]).args(args);
        if let Some(login) = self.login {
            curl.args(["--user", login]);
        }
        let ran = curl.output().context("apt-get install curl")?;
        ensure!(
            ran.status.success(),
            "curl {args:?}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(String::from_utf8(ran.stdout)?)
    }

    /// Puts the only image of an OCI layout here; returns the digest of its manifest.
    pub fn push(&self, layout: &Path, path: &str, tag: &str) -> Result<String> {
        let read = |file: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(file)?)?) };
        let file = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
            (layout.join("blobs").join(digest.replace(':', "/")), digest)
        };
        let index = read(&layout.join("index.json"))?;
        let (manifest_file, digest) = file(&index["manifests"][0]);
        let manifest = read(&manifest_file)?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for descriptor in layers.chain([&manifest["config"]]) {
            let (blob, digest) = file(descriptor);
            let uploads = format!("http://{}/v2/{path}/blobs/uploads/", self.address);
            let begun = self.curl(&["--request", "POST", "--dump-header", "-", &uploads])?;
            let location = begun.lines().find_map(|line| line.strip_prefix("Location: "));
            let to = format!(
                "{}&digest={digest}",
                location.context("an upload has a location")?.trim()
            );
            self.curl(&[
                "--request",
                "PUT",
                "--header",
                "Content-Type: application/octet-stream",
                "--data-binary",
                &format!("@{}", blob.display()),
                &to,
            ])?;
        }
        let to = format!("http://{}/v2/{path}/manifests/{tag}", self.address);
        self.curl(&[
            "--request",
            "PUT",
            "--header",
            "Content-Type: application/vnd.oci.image.manifest.v1+json",
            "--data-binary",
            &format!("@{}", manifest_file.display()),
            &to,
        ])?;
        Ok(digest)
    }

    /// A file of credentials for it, as `docker login` writes it.
    pub fn credentials(&self) -> Result<std::path::PathBuf> {
        let file = self.directory.path().join("credentials.json");
        let (user, password) = LOGIN.0.split_once(':').context("a user and a password")?;
        let entry = serde_json::json!({ "username": user, "password": password });
        fs::write(
            &file,
            serde_json::json!({ "auths": { &self.address: entry } }).to_string(),
        )?;
        Ok(file)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
