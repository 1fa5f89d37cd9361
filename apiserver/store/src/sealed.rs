//! A store in which some values are sealed: encrypted and authenticated, bound to their keys.
//!
//! Wraps any store; what lies under the given prefixes is sealed on its way in and opened on its way out, so that neither the disk, nor
//! etcd, nor a backup has it in the clear, and whoever uses the store notices nothing. AES-256-GCM with a nonce drawn for each value; the
//! key (where the value is) is authenticated with it, so a value cannot be moved. A sealed value names the key that seals it, so keys can
//! be replaced: [`Keyring`]. What was written before there were keys is read as it is, and sealed with its next write.
//!
//! What must never happen here: a value under the prefixes that goes in as it is; a nonce that is used twice. With everything sealed it
//! passes the conformance suite; the rest is tested below.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::types::{
    Change, CommitError, Compare, Entry, Error, Key, LeaseError, LeaseId, Listing, Op, Page, Prefix, Revision, Txn,
    WatchEvent, WatchStream,
};
use crate::{Store, WatchError};

/// What a sealed value begins with; then the id of its key, a colon, the nonce, and what is sealed.
const MAGIC: &[u8] = b"sealed:1:";

/// Bytes of a key.
const KEY_LEN: usize = 32;

/// So many values are read at once to be sealed anew: 64 MiB at most.
const RESEAL_PAGE: usize = 64;

/// The longest id of a key.
const ID_MAX: usize = 63;

/// Why a text is no keyring, or a value cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A line is not of the form.
    #[error(
        "line {0}: not of the form ID KEY, with a key of 64 hexadecimal digits and an id of letters, digits and `-`"
    )]
    Line(usize),
    /// Two keys have one id.
    #[error("line {0}: there is a key of this id already")]
    Twice(usize),
    /// There is no key in it.
    #[error("there is no key")]
    Empty,
    /// The value was sealed by another key.
    #[error("it is sealed by the key `{0}`, which this server does not have")]
    Unknown(String),
    /// The value is not what was sealed there.
    #[error("it is damaged, or was sealed by another key of the id `{0}`, or for another place")]
    Damaged(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

struct SealingKey {
    id: String,
    key: LessSafeKey,
}

/// Keys by their ids. The first seals; all open. To replace a key: put the new one last, everywhere; then first, everywhere; write
/// everything anew ([`SealedStore::reseal`]); then take the old one out.
pub struct Keyring {
    keys: Vec<SealingKey>,
    random: SystemRandom,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(|key| key.id.as_str()).collect();
        f.debug_tuple("Keyring").field(&ids).finish()
    }
}

impl Keyring {
    /// Reads a keyring: a line `ID KEY` for each key, in hexadecimal digits; empty lines and those that begin with `#` do not count.
    pub fn parse(text: &str) -> Result<Keyring, SealError> {
        let mut keys: Vec<SealingKey> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, key) = parse_line(line).ok_or(SealError::Line(index + 1))?;
            if keys.iter().any(|known| known.id == id) {
                return Err(SealError::Twice(index + 1));
            }
            let id = id.to_owned();
            keys.push(SealingKey { id, key });
        }
        if keys.is_empty() {
            return Err(SealError::Empty);
        }
        Ok(Keyring {
            keys,
            random: SystemRandom::new(),
        })
    }

    /// The text of a keyring with one new key.
    pub fn generate() -> Result<String, SealError> {
        let mut drawn = [0u8; KEY_LEN + 4];
        SystemRandom::new().fill(&mut drawn).map_err(|_| SealError::Random)?;
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        Ok(format!("key-{} {}\n", hex(&drawn[KEY_LEN..]), hex(&drawn[..KEY_LEN])))
    }

    /// The id of the key that seals.
    pub fn id(&self) -> &str {
        &self.keys[0].id
    }

    /// By how many bytes a sealed value is longer. They count where a store limits transactions.
    pub fn overhead(&self) -> usize {
        MAGIC.len() + self.id().len() + 1 + NONCE_LEN + AES_256_GCM.tag_len()
    }

    /// Seals a value for that place.
    pub fn seal(&self, place: &Key, value: &[u8]) -> Result<Bytes, SealError> {
        let SealingKey { id, key } = &self.keys[0];
        let mut nonce = [0u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = value.to_vec();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_of, Aad::from(place.as_str()), &mut sealed)
            .map_err(|_| SealError::Damaged(id.clone()))?;
        let parts = [MAGIC, id.as_bytes(), b":", &nonce, &sealed];
        Ok(parts.concat().into())
    }

    /// Whether a value is sealed by the key that seals now.
    fn is_current(&self, value: &[u8]) -> bool {
        let rest = value
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.strip_prefix(self.id().as_bytes()));
        rest.is_some_and(|rest| rest.starts_with(b":"))
    }

    /// Opens what was sealed for that place. What is not sealed is given as it is.
    pub fn open(&self, place: &Key, value: &Bytes) -> Result<Bytes, SealError> {
        let Some(rest) = value.strip_prefix(MAGIC) else {
            return Ok(value.clone());
        };
        let damaged = |id: &[u8]| SealError::Damaged(String::from_utf8_lossy(id).into_owned());
        let end = rest.iter().take(ID_MAX + 1).position(|byte| *byte == b':');
        let end = end.ok_or_else(|| damaged(b"?"))?;
        let (id, rest) = (&rest[..end], &rest[end + 1..]);
        let known = self.keys.iter().find(|key| key.id.as_bytes() == id);
        let known = known.ok_or_else(|| SealError::Unknown(String::from_utf8_lossy(id).into_owned()))?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(|| damaged(id))?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = known
            .key
            .open_in_place(nonce, Aad::from(place.as_str()), &mut opened)
            .map_err(|_| damaged(id))?
            .len();
        opened.truncate(length);
        opened.shrink_to_fit();
        Ok(opened.into())
    }
}

/// Whether a value is sealed, by whatever key.
pub fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(MAGIC)
}

fn parse_line(line: &str) -> Option<(&str, LessSafeKey)> {
    let (id, digits) = line.split_once(char::is_whitespace)?;
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let digits = digits.trim();
    if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(fine) || digits.len() != 2 * KEY_LEN || !digits.is_ascii()
    {
        return None;
    }
    let mut bytes = [0u8; KEY_LEN];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    let key = UnboundKey::new(&AES_256_GCM, &bytes).ok()?;
    Some((id, LessSafeKey::new(key)))
}

/// See the module.
pub struct SealedStore {
    inner: Arc<dyn Store>,
    seals: Seals,
}

#[derive(Clone)]
struct Seals {
    ring: Arc<Keyring>,
    prefixes: Arc<[Prefix]>,
}

impl Seals {
    fn covers(&self, key: &Key) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(key))
    }

    fn opened(&self, mut entry: Entry) -> Result<Entry, Error> {
        if self.covers(&entry.key) {
            let opened = self.ring.open(&entry.key, &entry.value);
            entry.value = opened.map_err(|error| Error::Fatal(format!("{} cannot be read: {error}", entry.key)))?;
        }
        Ok(entry)
    }

    /// One value that cannot be opened must not keep all others from being read; whoever reads it finds what is there.
    fn shown(&self, entry: Entry) -> Entry {
        let sealed = entry.clone();
        self.opened(entry).unwrap_or_else(|error| {
            tracing::error!(%error, "a sealed value is left out");
            sealed
        })
    }

    fn sealed(&self, mut txn: Txn) -> Result<Txn, Error> {
        for op in &mut txn.ops {
            if let Op::Put { key, value, .. } = op
                && self.covers(key)
            {
                let sealed = self.ring.seal(key, value);
                *value = sealed.map_err(|error| Error::Fatal(format!("{key} cannot be written: {error}")))?;
            }
        }
        Ok(txn)
    }
}

impl SealedStore {
    /// `inner`, with what is under these prefixes sealed.
    pub fn new(inner: Arc<dyn Store>, ring: Arc<Keyring>, prefixes: impl IntoIterator<Item = Prefix>) -> SealedStore {
        SealedStore {
            inner,
            seals: Seals {
                ring,
                prefixes: prefixes.into_iter().collect(),
            },
        }
    }

    /// Seals anew what is sealed by another key than the first, or not at all; how many values that were. What cannot be opened stays, and
    /// what somebody else writes at the same time is theirs.
    pub async fn reseal(&self) -> Result<usize, Error> {
        let mut count = 0;
        for prefix in &*self.seals.prefixes {
            let mut page = Page {
                after: None,
                limit: Some(RESEAL_PAGE),
            };
            loop {
                let listing = self.inner.list(prefix, page.clone()).await?;
                for entry in &listing.entries {
                    if !self.seals.ring.is_current(&entry.value) {
                        count += usize::from(self.reseal_one(entry).await?);
                    }
                }
                page.after = listing.entries.last().map(|entry| entry.key.clone());
                if !listing.more {
                    break;
                }
            }
        }
        Ok(count)
    }

    async fn reseal_one(&self, entry: &Entry) -> Result<bool, Error> {
        let opened = match self.seals.opened(entry.clone()) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "a sealed value cannot be sealed anew");
                return Ok(false);
            }
        };
        let Entry { key, value, lease, .. } = opened;
        let txn = Txn {
            compares: vec![Compare::modified(key.clone(), entry.mod_revision)],
            ops: vec![Op::Put { key, value, lease }],
        };
        match self.commit(txn).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(CommitError::Store(error)) => Err(error),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }
}

#[async_trait]
impl Store for SealedStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let entry = self.inner.get(key).await?;
        entry.map(|entry| self.seals.opened(entry)).transpose()
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        let mut listing = self.inner.list(prefix, page).await?;
        let entries = std::mem::take(&mut listing.entries).into_iter();
        listing.entries = entries.map(|entry| self.seals.shown(entry)).collect();
        Ok(listing)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let committed = self.inner.commit(self.seals.sealed(txn)?).await;
        committed.map_err(|error| match error {
            CommitError::Conflict { current } => {
                let show = |entry: Option<Entry>| entry.map(|entry| self.seals.shown(entry));
                CommitError::Conflict {
                    current: current.into_iter().map(show).collect(),
                }
            }
            other => other,
        })
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        let seals = self.seals.clone();
        let open = move |item: Result<WatchEvent, WatchError>| {
            item.map(|event| match event {
                WatchEvent::Batch { revision, changes } => {
                    let open = |change: Change| Change {
                        current: change.current.map(|entry| seals.shown(entry)),
                        ..change
                    };
                    let changes = changes.into_iter().map(open).collect();
                    WatchEvent::Batch { revision, changes }
                }
                progress @ WatchEvent::Progress(_) => progress,
            })
        };
        self.inner.watch(prefix, after).map(open).boxed()
    }

    fn gapless(&self) -> bool {
        self.inner.gapless()
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.inner.revoke(lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    const PLAIN: &[u8] = b"the password is 1234";

    fn ring(lines: &[&str]) -> Arc<Keyring> {
        Arc::new(Keyring::parse(&lines.concat()).expect("keys"))
    }

    fn over(inner: &Arc<MemoryStore>, ring: &Arc<Keyring>) -> SealedStore {
        SealedStore::new(inner.clone(), ring.clone(), [Prefix::new("secret/")])
    }

    async fn put(store: &dyn Store, place: &str) {
        let key = Key::new(place);
        let seen = store
            .get(&key)
            .await
            .ok()
            .flatten()
            .map_or(0, |entry| entry.mod_revision);
        let txn = Txn {
            compares: vec![Compare::modified(key.clone(), seen)],
            ops: vec![Op::put(key, PLAIN)],
        };
        store.commit(txn).await.expect("nobody else writes");
    }

    async fn raw(store: &dyn Store, place: &str) -> Vec<u8> {
        let entry = store.get(&Key::new(place)).await.expect("it can be read");
        entry.expect("it is there").value.to_vec()
    }

    fn has(value: &[u8], part: &[u8]) -> bool {
        value.windows(part.len()).any(|window| window == part)
    }

    #[tokio::test]
    async fn what_is_secret_is_sealed_and_nothing_else_is() {
        let inner = Arc::new(MemoryStore::new());
        let store = over(&inner, &ring(&[&Keyring::generate().expect("random")]));
        put(&store, "secret/a").await;
        put(&store, "secret/b").await;
        put(&store, "open/a").await;
        let (a, b) = (raw(&*inner, "secret/a").await, raw(&*inner, "secret/b").await);
        assert!(a.starts_with(MAGIC) && !has(&a, b"password") && !has(&a, b"1234"));
        assert_ne!(a[20..], b[20..], "equal values do not look equal");
        assert_eq!(raw(&*inner, "open/a").await, PLAIN);
        assert_eq!(raw(&store, "secret/a").await, PLAIN);
        let listing = store.list(&Prefix::new(""), Page::default()).await.expect("a list");
        assert!(listing.entries.iter().all(|entry| entry.value == PLAIN));
        let mut watch = store.watch(&Prefix::new("secret/"), 0);
        let Some(Ok(WatchEvent::Batch { changes, .. })) = watch.next().await else {
            panic!("a batch")
        };
        assert_eq!(changes[0].current.as_ref().expect("it is there").value, PLAIN);
    }

    #[tokio::test]
    async fn keys_are_replaced_without_a_moment_in_which_something_cannot_be_read() {
        let (old, new) = (
            Keyring::generate().expect("random"),
            Keyring::generate().expect("random"),
        );
        let inner = Arc::new(MemoryStore::new());
        put(&*inner, "secret/before").await;
        let first = over(&inner, &ring(&[&old]));
        assert_eq!(
            raw(&first, "secret/before").await,
            PLAIN,
            "written before there were keys"
        );
        put(&first, "secret/a").await;
        let second = over(&inner, &ring(&[&new, &old]));
        assert_eq!(raw(&second, "secret/a").await, PLAIN);
        assert_eq!(second.reseal().await.expect("resealed"), 2);
        assert_eq!(second.reseal().await.expect("resealed"), 0);
        let third = over(&inner, &ring(&[&new]));
        assert_eq!(raw(&third, "secret/a").await, PLAIN);
        assert!(raw(&*inner, "secret/before").await.starts_with(MAGIC));
        let error = first.get(&Key::new("secret/a")).await.expect_err("it lacks the key");
        assert!(error.to_string().contains(ring(&[&new]).id()), "{error}");
        // The others can be listed nevertheless.
        assert_eq!(
            first
                .list(&Prefix::new(""), Page::default())
                .await
                .expect("a list")
                .entries
                .len(),
            2
        );
    }

    #[test]
    fn a_value_that_was_changed_or_moved_does_not_open() {
        let ring = ring(&[&Keyring::generate().expect("random")]);
        let place = Key::new("secret/a");
        let sealed = ring.seal(&place, PLAIN).expect("sealed");
        assert_eq!(sealed.len(), PLAIN.len() + ring.overhead());
        assert_eq!(ring.open(&place, &sealed).expect("opened"), PLAIN);
        assert!(ring.open(&Key::new("secret/b"), &sealed).is_err());
        for index in MAGIC.len()..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[index] ^= 1;
            assert!(ring.open(&place, &changed.into()).is_err(), "byte {index}");
        }
        for length in MAGIC.len()..sealed.len() {
            assert!(ring.open(&place, &sealed.slice(..length)).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_keyring_that_is_none_says_where() {
        let key = "00".repeat(KEY_LEN);
        for (text, expect) in [
            (String::new(), SealError::Empty),
            ("# nothing\n\n".to_owned(), SealError::Empty),
            (format!("a {key}\nb"), SealError::Line(2)),
            (format!("a {}", &key[2..]), SealError::Line(1)),
            (format!("a:b {key}"), SealError::Line(1)),
            (format!("a {}zz", &key[2..]), SealError::Line(1)),
            (format!("a {key}\n\na {key}"), SealError::Twice(3)),
        ] {
            assert_eq!(
                Keyring::parse(&text).map(|ring| ring.id().to_owned()),
                Err(expect),
                "{text}"
            );
        }
        let ring = Keyring::parse(&format!("#c\n  b-1\t{key}\n")).expect("a key");
        assert!(!format!("{ring:?}").contains(&key), "keys are not shown");
    }
}
