//! Tokens of service accounts: signed, bound to an account, an audience and a time, and never stored.
//!
//! A token is a JSON Web Token signed with ES256. The key is drawn by the first server of a cluster and kept in the store, sealed
//! ([`keys::SIGNING`]), so that every server signs with it and knows the tokens of all others. Whoever wants to check tokens by himself
//! finds the public keys at `/openid/v1/jwks` and where they are at `/.well-known/openid-configuration`. Promises: a token counts while its
//! time lasts, the account that it names exists (the very one, by uid), and so does the object that it is bound to; a token for somebody
//! else is none here. What must never happen here: an algorithm that the token chooses. Tested below and in `tests/accounts.rs`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use muster_api::Timestamp;
use muster_api::env::Env;
use muster_store::{CommitError, Compare, Op, Store, Txn};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::auth::User;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::registry::Kind;
use crate::state::{StartError, State};

/// What the names of service accounts' users begin with.
const USER_PREFIX: &str = "system:serviceaccount:";
/// The group of all service accounts, and the beginning of the groups of those of a namespace.
const GROUP: &str = "system:serviceaccounts";
/// The longest token that is looked at.
const TOKEN_BYTES: usize = 16 << 10;

/// Signs tokens, and knows those that it signed.
pub struct Accounts {
    issuer: String,
    /// The first signs; all count.
    keys: Vec<SigningKey>,
    random: SystemRandom,
}

struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

/// As it is kept in the store.
#[derive(Serialize, Deserialize)]
struct Kept {
    keys: Vec<String>,
}

/// Whom a token speaks for, for whom, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    nbf: i64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    about: About,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    namespace: String,
    serviceaccount: Named,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    name: String,
    uid: String,
}

/// What a token shall be like.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// The account's namespace, name and uid.
    pub(crate) account: (String, String, String),
    /// For whom; empty: for this cluster.
    pub(crate) audiences: Vec<String>,
    /// For so many seconds.
    pub(crate) seconds: i64,
    /// Kind, name and uid of an object that must exist as long.
    pub(crate) bound: Option<(Bound, String, String)>,
}

/// The kinds of objects that a token may be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// A Secret.
    Secret,
    /// A Task.
    Task,
}

impl Bound {
    /// Where its objects are.
    pub(crate) fn kind(self, state: &State) -> Option<Arc<Kind>> {
        let qualified = match self {
            Bound::Secret => "secrets",
            Bound::Task => "tasks.muster.dev",
        };
        state.resources.stored(qualified)
    }
}

impl Accounts {
    /// Reads the cluster's signing keys, or draws the first.
    pub async fn open(store: &dyn Store, cluster: &str) -> std::result::Result<Accounts, StartError> {
        let key = keys::signing();
        loop {
            if let Some(entry) = store.get(&key).await? {
                return Accounts::read(&entry.value, cluster).ok_or(StartError::Signing);
            }
            let drawn = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
            let drawn = drawn.map_err(|_| StartError::Signing)?;
            let kept = Kept {
                keys: vec![BASE64.encode(drawn.as_ref())],
            };
            let txn = Txn {
                compares: vec![Compare::absent(key.clone())],
                ops: vec![Op::put(key.clone(), json!(kept).to_string())],
            };
            match store.commit(txn).await {
                // Another server may have been faster, so it is read in any case.
                Ok(_) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(value: &[u8], cluster: &str) -> Option<Accounts> {
        let random = SystemRandom::new();
        let kept: Kept = serde_json::from_slice(value).ok()?;
        let keys: Option<Vec<SigningKey>> = kept
            .keys
            .iter()
            .map(|key| {
                let bytes = BASE64.decode(key).ok()?;
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &random).ok()?;
                let id = BASE64.encode(Sha256::digest(pair.public_key().as_ref()));
                Some(SigningKey { id, pair })
            })
            .collect();
        Some(Accounts {
            issuer: format!("https://{cluster}.clusters.muster"),
            keys: keys.filter(|keys| !keys.is_empty())?,
            random,
        })
    }

    /// Who signs, as tokens name it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys, as a JSON Web Key Set.
    pub fn key_set(&self) -> Value {
        let keys = self.keys.iter().map(|key| {
            // An uncompressed point: 4, then both coordinates of 32 bytes.
            let point = key.pair.public_key().as_ref();
            json!({
                "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65]),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }

    /// Where the keys are, as OpenID Connect wants it.
    pub fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// Signs a token, and says when its time ends.
    pub(crate) fn issue(&self, wish: Wish, env: &dyn Env) -> Result<(String, Timestamp)> {
        let now = env.now();
        let expires = now + jiff::SignedDuration::from_secs(wish.seconds);
        let (namespace, name, uid) = wish.account;
        let bound = |kind: Bound| {
            let found = wish.bound.as_ref().filter(|(bound, ..)| *bound == kind);
            found.map(|(_, name, uid)| Named {
                name: name.clone(),
                uid: uid.clone(),
            })
        };
        let audiences = match wish.audiences {
            none if none.is_empty() => vec![self.issuer.clone()],
            some => some,
        };
        let claims = Claims {
            aud: audiences,
            exp: expires.as_second(),
            iat: now.as_second(),
            nbf: now.as_second(),
            iss: self.issuer.clone(),
            jti: env.uid().to_string(),
            sub: format!("{USER_PREFIX}{namespace}:{name}"),
            about: About {
                namespace,
                serviceaccount: Named { name, uid },
                secret: bound(Bound::Secret),
                task: bound(Bound::Task),
            },
        };
        let key = &self.keys[0];
        let header = json!({"alg": "ES256", "kid": key.id, "typ": "JWT"});
        let part = |value: &Value| BASE64.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&json!(claims)));
        let signature = key.pair.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| ApiError::internal("the system gives no random numbers"))?;
        Ok((format!("{signed}.{}", BASE64.encode(signature)), expires))
    }

    /// Whether this could be a token of a service account; other tokens have no dots.
    pub(crate) fn is_token(token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// What a token says, if it was signed here and its time lasts.
    fn claims(&self, token: &str, now: Timestamp) -> Option<Claims> {
        if token.len() > TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, body) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        let key = self.keys.iter().find(|key| header["kid"] == key.id.as_str())?;
        if header["alg"] != "ES256" {
            return None;
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref());
        let signature = BASE64.decode(signature).ok()?;
        public.verify(signed.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(body).ok()?).ok()?;
        let now = now.as_second();
        (claims.iss == self.issuer && claims.nbf <= now && now < claims.exp).then_some(claims)
    }

    /// Whose token this is, and for which of `audiences` (empty: for this cluster) it counts.
    pub(crate) fn authenticate(&self, state: &State, token: &str, audiences: &[String]) -> Result<(User, Vec<String>)> {
        let claims = self.claims(token, state.env.now()).ok_or_else(ApiError::unauthorized)?;
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own } else { audiences };
        let shared: Vec<String> = wanted.iter().filter(|one| claims.aud.contains(one)).cloned().collect();
        let About {
            namespace,
            serviceaccount,
            secret,
            task,
        } = &claims.about;
        let account = state.resources.stored("serviceaccounts");
        let lives = |kind: Option<Arc<Kind>>, named: &Named| {
            let key = kind.map(|kind| keys::object(&kind.stored, namespace, &named.name));
            let found = key.and_then(|key| state.hub.get(&key)).map(|object| object.json());
            found.is_some_and(|found| found["metadata"]["uid"] == named.uid.as_str())
        };
        let bound = [(Bound::Secret, secret), (Bound::Task, task)];
        let bound = bound
            .into_iter()
            .all(|(kind, named)| named.as_ref().is_none_or(|named| lives(kind.kind(state), named)));
        if shared.is_empty() || !lives(account, serviceaccount) || !bound {
            return Err(ApiError::unauthorized());
        }
        Ok((user(namespace, &serviceaccount.name), shared))
    }
}

/// The user that an account's tokens speak for.
pub(crate) fn user(namespace: &str, name: &str) -> User {
    let groups = [GROUP, &format!("{GROUP}:{namespace}")];
    User::new(user_name(namespace, name), &groups)
}

/// The name of that user.
pub(crate) fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name of the account that a user is.
pub(crate) fn named(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use muster_api::env::SystemEnv;
    use muster_store::MemoryStore;

    use super::*;

    fn wish(seconds: i64) -> Wish {
        Wish {
            account: ("d".to_owned(), "robot".to_owned(), "u".to_owned()),
            audiences: Vec::new(),
            seconds,
            bound: Some((Bound::Task, "t".to_owned(), "tu".to_owned())),
        }
    }

    fn part(token: &str, index: usize) -> Value {
        let part = token.split('.').nth(index).expect("three parts");
        serde_json::from_slice(&BASE64.decode(part).expect("base64")).expect("JSON")
    }

    #[tokio::test]
    async fn a_token_says_whose_it_is_and_counts_for_its_time_everywhere_in_the_cluster() {
        let store = MemoryStore::new();
        let accounts = Accounts::open(&store, "c1").await.unwrap();
        let (token, expires) = accounts.issue(wish(600), &SystemEnv).unwrap();
        let claims = part(&token, 1);
        assert_eq!(claims["sub"], "system:serviceaccount:d:robot");
        assert_eq!(claims["aud"], json!(["https://c1.clusters.muster"]));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
        assert_eq!(
            claims["kubernetes.io"]["serviceaccount"],
            json!({"name": "robot", "uid": "u"})
        );
        assert_eq!(claims["kubernetes.io"]["task"], json!({"name": "t", "uid": "tu"}));
        assert_eq!(part(&token, 0)["kid"], accounts.key_set()["keys"][0]["kid"]);
        let second = Accounts::open(&store, "c1").await.unwrap();
        let before = expires - jiff::SignedDuration::from_secs(1);
        assert!(second.claims(&token, before).is_some(), "another server knows it");
        assert_eq!(second.claims(&token, expires), None, "its time is over");
        let early = expires - jiff::SignedDuration::from_secs(700);
        assert_eq!(second.claims(&token, early), None, "its time has not come");
        let other = Accounts::open(&MemoryStore::new(), "c1").await.unwrap();
        assert_eq!(other.claims(&token, before), None, "another cluster does not");
    }

    #[tokio::test]
    async fn a_token_that_was_changed_counts_for_nothing() {
        let accounts = Accounts::open(&MemoryStore::new(), "c1").await.unwrap();
        let (token, expires) = accounts.issue(wish(600), &SystemEnv).unwrap();
        let now = expires - jiff::SignedDuration::from_secs(1);
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims = part(&token, 1);
        claims["sub"] = json!("system:serviceaccount:d:admin");
        let forged = BASE64.encode(claims.to_string());
        let unsigned = BASE64.encode(json!({"alg": "none", "kid": part(&token, 0)["kid"]}).to_string());
        for wrong in [
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{unsigned}.{}.", parts[1]),
            format!("{unsigned}.{}.{}", parts[1], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}.{}", parts[0], parts[1], &parts[2][4..]),
            "..".to_owned(),
            "a.b.c".to_owned(),
            format!("{token}{}", "A".repeat(TOKEN_BYTES)),
        ] {
            assert_eq!(accounts.claims(&wrong, now), None, "{wrong}");
        }
        assert!(accounts.claims(&token, now).is_some());
    }
}
