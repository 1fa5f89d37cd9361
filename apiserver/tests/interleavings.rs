//! Whatever happens in between, a client that lists and then watches sees what the store holds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use muster_store::{FaultStore, Faults, MemoryStore, Page, Prefix, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What is done to the server, or by the client.
#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    /// Puts an object in or out of the selection.
    Label(u8, bool),
    Delete(u8),
    /// The client reads so many events.
    Read(u8),
    /// The client's connection breaks.
    Cut,
    /// The store forgets its history.
    Compact,
    /// Time passes.
    Wait,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6).prop_map(Step::Create),
        4 => (0u8..6, any::<bool>()).prop_map(|(name, on)| Step::Label(name, on)),
        2 => (0u8..6).prop_map(Step::Delete),
        4 => (1u8..4).prop_map(Step::Read),
        1 => Just(Step::Cut),
        1 => Just(Step::Compact),
        1 => Just(Step::Wait),
    ]
}

/// A client that does what informers do.
struct Informer {
    query: &'static str,
    watch: Option<Lines>,
    version: Option<String>,
    objects: BTreeMap<String, String>,
}

impl Informer {
    fn new(query: &'static str) -> Informer {
        Informer {
            query,
            watch: None,
            version: None,
            objects: BTreeMap::new(),
        }
    }

    /// Lists or resumes; `false`: not now.
    async fn connect(&mut self, client: &Client<'_>) -> bool {
        if self.version.is_none() {
            let list = client.get(&format!("{CONFIG_MAPS}?{}", self.query)).await;
            if list.code != 200 {
                return false;
            }
            self.objects = versions(&list.json).iter().map(|text| split(text)).collect();
            self.version = Some(list.version().to_owned());
        }
        let version = self.version.as_deref().unwrap();
        let path = format!(
            "{CONFIG_MAPS}?{}&watch=true&allowWatchBookmarks=true&resourceVersion={version}",
            self.query
        );
        let response = client.open("GET", &path, "").await;
        if response.status() != 200 {
            return false;
        }
        self.watch = Some(Lines::new(response.into_body()));
        true
    }

    /// Reads an event if one comes soon; `false`: none did.
    async fn read(&mut self, client: &Client<'_>) -> bool {
        if self.watch.is_none() && !self.connect(client).await {
            return false;
        }
        let watch = self.watch.as_mut().unwrap();
        match tokio::time::timeout(Duration::from_millis(500), watch.next()).await {
            Err(_) => false,
            Ok(None) => {
                self.watch = None;
                true
            }
            Ok(Some(event)) => {
                self.apply(&event);
                true
            }
        }
    }

    fn apply(&mut self, event: &Value) {
        if event["type"] == "ERROR" {
            assert_eq!(event["object"]["code"], 410, "{event}");
            self.watch = None;
            self.version = None;
            return;
        }
        let text = brief(event);
        let (kind, rest) = text.split_once(' ').unwrap();
        let (name, version) = split(rest);
        match kind {
            "ADDED" | "MODIFIED" => _ = self.objects.insert(name, version.clone()),
            "DELETED" => _ = self.objects.remove(&name),
            "BOOKMARK" => (),
            other => panic!("{other}"),
        }
        let number = |text: &str| text.parse::<u64>().unwrap();
        let before = number(self.version.as_deref().unwrap());
        assert!(number(&version) >= before, "versions rise: {before}, then {text}");
        self.version = Some(version);
    }
}

fn split(text: &str) -> (String, String) {
    let (name, version) = text.split_once('@').unwrap();
    (name.to_owned(), version.to_owned())
}

/// What the store itself holds, and what of it is selected.
async fn truth(store: &dyn Store, selected: bool) -> BTreeMap<String, String> {
    let prefix = Prefix::new("objects/core/configmaps/default/");
    let listing = store.list(&prefix, Page::default()).await.unwrap();
    let entries = listing.entries.into_iter().filter(|entry| {
        let object: Value = serde_json::from_slice(&entry.value).unwrap();
        !selected || object["metadata"]["labels"]["on"] == "true"
    });
    entries
        .map(|entry| {
            let name = entry.key.as_str().rsplit_once('/').unwrap().1.to_owned();
            (name, entry.mod_revision.to_string())
        })
        .collect()
}

async fn act(server: &Server, step: &Step) {
    let client = server.admin();
    let path = |name: &u8| format!("{CONFIG_MAPS}/c{name}");
    match step {
        Step::Create(name) => _ = client.post(CONFIG_MAPS, &config_map(&format!("c{name}"), "1")).await,
        Step::Label(name, on) => {
            let patch = json!({"metadata": {"labels": {"on": on.to_string()}}});
            client.merge(&path(name), &patch).await;
        }
        Step::Delete(name) => _ = client.delete(&path(name)).await,
        Step::Compact => {
            let revision = server.store.revision().await.unwrap_or_default();
            _ = server.store.compact(revision).await;
        }
        Step::Wait => tokio::time::sleep(Duration::from_secs(2)).await,
        Step::Read(_) | Step::Cut => (),
    }
}

async fn check(seed: u64, steps: Vec<Step>) {
    let inner: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultStore::new(inner.clone(), seed, Faults::none()));
    let server = Server::on(faulty.clone()).await;
    faulty.set_faults(Faults {
        unavailable_before: 0.05,
        unavailable_after: 0.05,
        late_commit: 0.05,
        delay: 0.2,
        delay_max: Duration::from_millis(300),
        watch_cut: 0.1,
        watch_repeat: 0.1,
        compaction: 0.05,
        ..Faults::none()
    });
    let mut informers = [Informer::new(""), Informer::new("labelSelector=on%3Dtrue")];
    for step in &steps {
        act(&server, step).await;
        for informer in &mut informers {
            match step {
                Step::Read(count) => {
                    for _ in 0..*count {
                        informer.read(&server.admin()).await;
                    }
                }
                Step::Cut => informer.watch = None,
                _ => (),
            }
        }
    }
    faulty.set_faults(Faults::none());
    // Late commits have been tried by then.
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (informer, selected) in informers.iter_mut().zip([false, true]) {
        while informer.read(&server.admin()).await {}
        assert_eq!(
            informer.objects,
            truth(&*inner, selected).await,
            "seed {seed}, {steps:?}"
        );
    }
    let list = server.admin().get(CONFIG_MAPS).await.expect(200).json;
    let listed: BTreeMap<String, String> = versions(&list).iter().map(|text| split(text)).collect();
    assert_eq!(listed, truth(&*inner, false).await, "seed {seed}, {steps:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_that_lists_and_watches_sees_what_the_store_holds(
        seed in any::<u64>(),
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(seed, steps));
    }
}
