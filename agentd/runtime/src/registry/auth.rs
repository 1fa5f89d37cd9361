//! Who one is to a registry: credentials, and the tokens that they are exchanged for.
//!
//! Sources: the token and scope pages of the distribution project, RFC 7235 for challenges. Pure but for reading the file of credentials.

use std::collections::BTreeMap;
use std::path::Path;

use ::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::name::Remote;
use super::{Keys, PullError};
use crate::percent;

/// What a registry wants of whom it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, from there.
    Bearer {
        /// Where tokens are given out, with what they are to be for.
        url: String,
    },
    /// The credentials themselves.
    Basic,
}

impl Challenge {
    /// Of several, a token is asked for rather than credentials sent.
    pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a HeaderValue>, remote: &Remote) -> Option<Challenge> {
        let mut basic = None;
        for header in headers.filter_map(|header| header.to_str().ok()) {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer") {
                let parameters = parameters(rest);
                let realm = parameters.get("realm")?;
                let scope = format!("repository:{}:pull", remote.path);
                let scope = parameters.get("scope").unwrap_or(&scope);
                let service = parameters.get("service").map(|service| ("service", service));
                let query: Vec<String> = service
                    .into_iter()
                    .chain([("scope", scope)])
                    .map(|(name, value)| format!("{name}={}", percent::encode(value.as_bytes())))
                    .collect();
                let and = if realm.contains('?') { '&' } else { '?' };
                return Some(Challenge::Bearer {
                    url: format!("{realm}{and}{}", query.join("&")),
                });
            }
        }
        basic
    }
}

/// `name="value"`, separated by commas; in a value, a backslash is followed by what it stands for.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text.chars().peekable();
    loop {
        let name: String = std::iter::from_fn(|| rest.next_if(|c| *c != '=')).collect();
        if rest.next().is_none() {
            return parameters;
        }
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                value.extend(if c == '\\' { rest.next() } else { Some(c) });
            }
            while rest.next_if(|c| *c != ',').is_some() {}
        } else {
            value.extend(std::iter::from_fn(|| rest.next_if(|c| *c != ',')));
        }
        rest.next();
        parameters.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// The answer of whoever gives out tokens.
#[derive(Deserialize)]
pub(super) struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    /// The header that shows it.
    pub(super) fn header(self) -> Option<HeaderValue> {
        let token = self.token.or(self.access_token)?;
        sensitive(format!("Bearer {token}"))
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The header with the credentials for a registry: of the first of these that has some, then of the file. `None`: nobody has any.
pub(super) fn credentials(
    keys: &[Keys],
    file: Option<&Path>,
    remote: &Remote,
) -> Result<Option<HeaderValue>, PullError> {
    for keys in keys {
        let found = of(keys.bytes(), "in spec.imagePullSecrets", remote)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    let Some(file) = file else { return Ok(None) };
    let place = format!("in {}", file.display());
    let bytes = std::fs::read(file).map_err(|error| unusable(&place, &error))?;
    of(&bytes, &place, remote)
}

fn unusable(place: &str, why: &dyn std::fmt::Display) -> PullError {
    PullError::later(format!("the credentials of registries {place}: {why}"))
}

fn of(bytes: &[u8], place: &str, remote: &Remote) -> Result<Option<HeaderValue>, PullError> {
    let unusable = |why: &dyn std::fmt::Display| unusable(place, why);
    // Not the error of the parser, which may quote what it read.
    let parsed: File = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        unusable(&format!("not as `docker login` writes them, at {line}:{column}"))
    })?;
    let entry = remote.known_as().into_iter().find_map(|name| parsed.auths.get(&name));
    let pair = match entry {
        None => return Ok(None),
        Some(Entry {
            username: Some(user),
            password: Some(password),
            ..
        }) => STANDARD.encode(format!("{user}:{password}")),
        Some(Entry { auth: Some(auth), .. }) if !auth.is_empty() => auth.clone(),
        Some(_) => {
            let helper = "the entry has no `auth`: programs that keep credentials elsewhere are not asked";
            return Err(unusable(&format!("{}: {helper}", remote.registry)));
        }
    };
    sensitive(format!("Basic {pair}"))
        .map(Some)
        .ok_or_else(|| unusable(&format!("{}: `auth` is no text", remote.registry)))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Remote {
        Remote::parse("registry.example:5000/team/app:1").expect("a name")
    }

    fn chosen(headers: &[&str]) -> Option<Challenge> {
        let headers: Vec<HeaderValue> = headers.iter().map(|text| text.parse().expect("a header")).collect();
        Challenge::choose(headers.iter(), &remote())
    }

    #[test]
    fn a_token_is_asked_for_where_and_for_what_the_registry_says() {
        let header =
            r#"Bearer realm="https://auth.example/token?a=b",service="a \"b\" c",scope="repository:team/app:pull""#;
        let url = "https://auth.example/token?a=b&service=a%20%22b%22%20c&scope=repository%3Ateam/app%3Apull";
        let expect = Challenge::Bearer { url: url.to_owned() };
        assert_eq!(chosen(&[header]), Some(expect.clone()));
        assert_eq!(chosen(&["Basic realm=x", header]), Some(expect));
        let bare = Challenge::Bearer {
            url: "https://a/t?scope=repository%3Ateam/app%3Apull".to_owned(),
        };
        assert_eq!(chosen(&["bearer realm=https://a/t"]), Some(bare));
        assert_eq!(chosen(&[r#"Basic realm="x, y""#]), Some(Challenge::Basic));
        for none in ["", "Negotiate", "Bearer", "Bearer service=x"] {
            assert_eq!(chosen(&[none]), None, "{none}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_registry_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config.json");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        let header = || {
            credentials(&[], Some(&file), &remote()).map(|header| header.map(|h| h.to_str().expect("text").to_owned()))
        };
        write(
            r#"{"auths": {"https://registry.example:5000": {"auth": "dTpw"}, "other": {"auth": "x"}}, "credsStore": "x"}"#,
        );
        assert_eq!(header(), Ok(Some("Basic dTpw".to_owned())));
        write(r#"{"auths": {"registry.example:5000": {"username": "u", "password": "p"}}}"#);
        assert_eq!(header(), Ok(Some("Basic dTpw".to_owned())));
        write(r#"{"auths": {"registry.example": {"auth": "dTpw"}}}"#);
        assert_eq!(header(), Ok(None));
        write(r#"{"auths": {"registry.example:5000": {}}}"#);
        assert!(header().expect_err("a helper").to_string().contains("are not asked"));
        let keys = |text: &str| Keys::from(text.as_bytes());
        let others = keys(r#"{"auths": {"other": {"auth": "x"}}}"#);
        let own = keys(r#"{"auths": {"registry.example:5000": {"auth": "b3du"}}}"#);
        write(r#"{"auths": {"registry.example:5000": {"auth": "dTpw"}}}"#);
        let first = |keys: &[Keys]| credentials(keys, Some(&file), &remote()).expect("read").expect("some");
        assert_eq!(
            first(&[others.clone(), own]),
            "Basic b3du",
            "the task's own count first"
        );
        assert_eq!(first(&[others]), "Basic dTpw");
        let error = credentials(&[keys("s3cret")], None, &remote())
            .expect_err("no credentials")
            .to_string();
        assert!(
            error.contains("spec.imagePullSecrets") && !error.contains("s3cret"),
            "{error}"
        );
        write(r#"{"auths": "s3cret"}"#);
        let error = header().expect_err("no file of credentials").to_string();
        assert!(error.contains("config.json") && !error.contains("s3cret"), "{error}");
    }
}
