//! Bearer tokens in a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use muster_api::env::Env;
use sha2::{Digest, Sha256};

use super::{Authenticate, User};
use crate::error::ApiError;
use crate::files;

/// A line of the token file is at most this long; a token has 71 characters.
const LINE_MAX: usize = 4096;

/// The tokens that are known, kept in a file of lines `token,user,"group1,group2"`.
#[derive(Debug)]
pub struct Tokens {
    path: Option<PathBuf>,
    entries: RwLock<Vec<Entry>>,
}

struct Entry {
    token: String,
    digest: [u8; 32],
    user: User,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Entry {
    fn new(token: String, user: User) -> Entry {
        let digest = Sha256::digest(token.as_bytes()).into();
        Entry { token, digest, user }
    }
}

impl Tokens {
    /// Tokens that are kept in memory alone.
    pub fn in_memory() -> Tokens {
        Tokens {
            path: None,
            entries: RwLock::default(),
        }
    }

    /// The tokens of the file; none when it is not there yet. It must not be readable by others.
    pub fn open(path: &Path) -> io::Result<Tokens> {
        let mut entries = Vec::new();
        for (index, line) in files::read_private(path)?.unwrap_or_default().lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = parse_line(line).ok_or_else(|| {
                let problem = format!(
                    "{}:{}: not of the form token,user,\"group1,group2\"",
                    path.display(),
                    index + 1
                );
                io::Error::new(io::ErrorKind::InvalidData, problem)
            })?;
            entries.push(entry);
        }
        Ok(Tokens {
            path: Some(path.to_owned()),
            entries: RwLock::new(entries),
        })
    }

    /// All of them, as the file has them.
    pub fn text(&self) -> String {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|entry| line(&entry.token, &entry.user)).collect()
    }

    /// The token of the user: the one it has with these groups, or a new one, which is in the file before this returns.
    pub fn ensure(&self, user: &User, env: &dyn Env) -> io::Result<String> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = entries.iter().find(|entry| entry.user == *user) {
            return Ok(known.token.clone());
        }
        // Two uids: 244 random bits.
        let token = format!("muster-{}{}", env.uid().simple(), env.uid().simple());
        if let Some(path) = &self.path {
            let lines = entries.iter().map(|entry| line(&entry.token, &entry.user));
            let lines: String = lines.chain([line(&token, user)]).collect();
            files::write_private(path, lines.as_bytes())?;
        }
        entries.push(Entry::new(token.clone(), user.clone()));
        Ok(token)
    }
}

fn line(token: &str, user: &User) -> String {
    format!("{token},{},\"{}\"\n", user.name, user.groups.join(","))
}

fn parse_line(line: &str) -> Option<Entry> {
    let mut parts = line.trim().splitn(3, ',');
    let (token, name) = (parts.next()?.trim(), parts.next()?.trim());
    let groups = parts.next().unwrap_or_default().trim().trim_matches('"');
    let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
    let fine = !token.is_empty() && !name.is_empty() && line.len() <= LINE_MAX;
    fine.then(|| {
        let user = User {
            name: name.to_owned(),
            groups: groups.map(str::to_owned).collect(),
            ..User::default()
        };
        Entry::new(token.to_owned(), user)
    })
}

impl Authenticate for Tokens {
    fn authenticate(&self, token: Option<&str>) -> Result<User, ApiError> {
        let Some(token) = token else {
            return Ok(User::anonymous());
        };
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        // Every digest is compared to its end, so that the time taken tells nothing about the tokens.
        let mut found = None;
        for entry in entries.iter() {
            let differs = entry
                .digest
                .iter()
                .zip(digest)
                .fold(0u8, |differs, (a, b)| differs | (a ^ b));
            if differs == 0 {
                found = Some(&entry.user);
            }
        }
        found.cloned().ok_or_else(ApiError::unauthorized)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use muster_api::env::SystemEnv;

    use super::*;

    #[test]
    fn tokens_survive_a_restart_and_nothing_else_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        let admin = tokens.ensure(&User::admin(), &SystemEnv).unwrap();
        let two = User::new("two", &["a", "b"]);
        let other = tokens.ensure(&two, &SystemEnv).unwrap();
        assert_eq!(
            tokens.ensure(&two, &SystemEnv).unwrap(),
            other,
            "a user keeps its token"
        );

        let tokens = Tokens::open(&path).unwrap();
        assert_eq!(tokens.authenticate(Some(&admin)), Ok(User::admin()));
        assert_eq!(tokens.authenticate(Some(&other)), Ok(two));
        assert_eq!(tokens.authenticate(None), Ok(User::anonymous()));
        for wrong in ["", "x", &admin[..admin.len() - 1], &format!("{admin}x")] {
            assert_eq!(
                tokens.authenticate(Some(wrong)).unwrap_err().code,
                StatusCode::UNAUTHORIZED,
                "{wrong}"
            );
        }
        assert!(!format!("{tokens:?}").contains(&admin), "tokens are not shown");
    }

    #[test]
    fn a_broken_token_file_is_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        files::write_private(&path, b"# comment\n\nt,u,\"g\"\n,nobody,\n").unwrap();
        let error = Tokens::open(&path).unwrap_err().to_string();
        assert!(error.contains("tokens:4:"), "{error}");
    }
}
