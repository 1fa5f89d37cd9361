//! How machines join a cluster: the token that a person carries over, and what is said with it.
//!
//! A [`JoinToken`] is one word that can be copied and pasted. It names the servers, pins the authority that their certificates must be
//! signed by, and holds a secret that the cluster knows the hash of. What must never happen here: a secret in the output of `Debug`.
//! Tested below; the rules that the server follows are in its routes.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What every token begins with; the number is the version of its form.
const PREFIX: &str = "muster1";

/// How long a token lasts when nothing else is said, in seconds.
pub const TTL_DEFAULT: u64 = 15 * 60;
/// The longest life of a token, in seconds: a week.
pub const TTL_MAX: u64 = 7 * 24 * 3600;

/// What lets a machine join: `muster1.ID.SECRET.PIN@HOST:PORT,HOST:PORT`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token; no secret.
    pub id: String,
    /// What proves that its bearer was given it.
    pub secret: String,
    /// The SHA-256 of the authority's certificate (DER).
    pub pin: [u8; 32],
    /// `HOST:PORT` of each server; at least one.
    pub endpoints: Vec<String>,
}

/// A text that is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token: {0}; one is printed by `mctl token create` and begins with `{PREFIX}.`")]
pub struct JoinTokenError(&'static str);

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.", self.id, self.secret)?;
        for byte in self.pin {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "@{}", self.endpoints.join(","))
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<JoinToken, JoinTokenError> {
        let (head, tail) = text
            .trim()
            .split_once('@')
            .ok_or(JoinTokenError("it names no server"))?;
        let parts: Vec<&str> = head.split('.').collect();
        let [prefix, id, secret, pin] = parts.as_slice() else {
            return Err(JoinTokenError("it does not have four parts before the `@`"));
        };
        if *prefix != PREFIX {
            return Err(JoinTokenError("its beginning is another one"));
        }
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain(id) || !plain(secret) {
            return Err(JoinTokenError("a part of it is empty or damaged"));
        }
        let endpoints: Vec<String> = tail.split(',').map(str::to_owned).collect();
        if !endpoints.iter().all(|endpoint| is_host_and_port(endpoint)) {
            return Err(JoinTokenError("a server in it is not HOST:PORT"));
        }
        Ok(JoinToken {
            id: (*id).to_owned(),
            secret: (*secret).to_owned(),
            pin: digest(pin).ok_or(JoinTokenError("its pin is damaged"))?,
            endpoints,
        })
    }
}

/// 32 bytes from 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(out)
}

fn is_host_and_port(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && host.bytes().all(allowed) && port.parse::<u16>().is_ok())
}

/// What a token lets its bearer become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRole {
    /// An agent.
    #[default]
    Agent,
    /// One more server, with the authority's key and everybody's tokens.
    Server,
}

/// Asks for a token: `POST /muster/v1/tokens`. Masters only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TokenRequest {
    /// For what.
    pub role: JoinRole,
    /// The only name that an agent can take with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long it lasts; 0: [`TTL_DEFAULT`].
    pub ttl_seconds: u64,
}

/// What is known of a token; not its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Which.
    pub id: String,
    /// For what.
    pub role: JoinRole,
    /// The only name that an agent can take with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Who has used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
}

/// The one use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUse {
    /// The name that has joined.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A new token. It is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// The word to copy.
    pub token: String,
    /// What is known of it.
    pub info: TokenInfo,
}

/// All tokens: `GET /muster/v1/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// By their ids.
    pub items: Vec<TokenInfo>,
}

/// A machine joins: `POST /muster/v1/join`, by whoever has a token.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct JoinRequest {
    /// Which token.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// As what.
    pub role: JoinRole,
    /// The name to join under.
    pub name: String,
    /// Which machine (and data directory) this is, so that a name stays with its machine.
    pub machine: String,
    /// The request for a certificate (PEM); its key also tells a repeated request from another one.
    pub csr: String,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A certificate asks for its successor: `POST /muster/v1/renew`, by agents that show one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RenewRequest {
    /// The request for a certificate (PEM).
    pub csr: String,
}

/// What a machine that has joined, or renewed, is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinAnswer {
    /// Its name in the cluster.
    pub name: String,
    /// Its certificate (PEM): for showing who it is to servers, and to whoever connects to it.
    pub certificate: String,
    /// The authority's certificate (PEM).
    pub ca: String,
    /// `HOST:PORT` of each server.
    pub endpoints: Vec<String>,
    /// For servers alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<ServerSecrets>,
}

/// What makes a server one of the cluster.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSecrets {
    /// The authority's private key (PEM).
    pub ca_key: String,
    /// Everybody's bearer tokens, as the file has them.
    pub tokens: String,
    /// The keys by which secrets are sealed, as the file has them; empty from a server that has none.
    pub encryption_key: String,
}

impl fmt::Debug for ServerSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSecrets").finish_non_exhaustive()
    }
}

/// The servers that live: `GET /muster/v1/endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Servers {
    /// By their names.
    pub servers: Vec<Server>,
}

/// A server that lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// `HOST:PORT` of each way to it.
    pub endpoints: Vec<String>,
    /// Its version, such as `0.1.0`; empty of one that does not say.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: "0a1b".to_owned(),
            secret: "s3cr3t".to_owned(),
            pin: std::array::from_fn(|index| u8::try_from(index * 7).unwrap_or_default()),
            endpoints: vec!["muster.example.org:7443".to_owned(), "[::1]:1".to_owned()],
        }
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(
            format!(" {text}\n").parse(),
            Ok(token()),
            "pasted with what is around it"
        );
    }

    #[test]
    fn a_damaged_token_says_what_is_wrong_with_it() {
        let text = token().to_string();
        for (damaged, why) in [
            (String::new(), "no server"),
            (text.replace("muster1", "muster9"), "beginning"),
            (text.replace("0a1b", ""), "empty"),
            (text.replace("s3cr3t", "a/b"), "damaged"),
            (text.replace("@", "0@"), "pin"),
            (text.replace(":7443", ""), "HOST:PORT"),
            (text.replace("muster.example.org", "a b"), "HOST:PORT"),
            (text.replace("s3cr3t.", ""), "four parts"),
        ] {
            let error = damaged.parse::<JoinToken>().expect_err(&damaged).to_string();
            assert!(error.contains(why), "{damaged}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", token()).contains("s3cr3t"));
        let request = JoinRequest {
            secret: "s3cr3t".to_owned(),
            ..JoinRequest::default()
        };
        assert!(!format!("{request:?}").contains("s3cr3t"));
        let secrets = ServerSecrets {
            ca_key: "s3cr3t".to_owned(),
            tokens: "s3cr3t".to_owned(),
            encryption_key: "s3cr3t".to_owned(),
        };
        assert!(!format!("{secrets:?}").contains("s3cr3t"));
    }
}
