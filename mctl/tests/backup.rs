//! `mctl backup` and `mctl store`, on stores that a server could have left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_store::embedded::Options;
use muster_store::testing::EtcdCluster;
use muster_store::{Compare, EmbeddedStore, EtcdStore, Key, Op, Page, Prefix, Store, Txn};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

const UID: u128 = 0x17;
const TASK: &str = "objects/muster.dev/tasks/default/t";

/// Runs the command: `(exit code, what it printed, what it said)`.
fn mctl(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mctl"))
        .args(words)
        .env("NO_COLOR", "1")
        .output();
    let output = output.expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn done(words: &[&str]) -> String {
    let (code, out, err) = mctl(words);
    assert_eq!(code, 0, "{words:?}: {err}");
    out
}

fn refused(words: &[&str]) -> String {
    let (code, out, err) = mctl(words);
    assert_eq!((code, out.as_str()), (1, ""), "{words:?}: {err}");
    err
}

async fn create(store: &dyn Store, name: &str, value: String) {
    let key = Key::new(name);
    let txn = Txn {
        compares: vec![Compare::absent(key.clone())],
        ops: vec![Op::put(key, value)],
    };
    store.commit(txn).await.expect("it is free");
}

/// A data directory whose server was stopped while a task ran.
async fn left_behind(path: &Path) {
    std::fs::create_dir(path).expect("a directory can be made");
    let options = Options {
        uid: UID,
        ..Options::default()
    };
    let store = EmbeddedStore::open(&path.join("store.redb"), &options).expect("a new store opens");
    let task = json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": {"name": "t", "namespace": "default", "uid": "u", "finalizers": ["muster.dev/agent"]},
        "spec": {"framework": "default", "role": "default", "command": ["true"], "resources": {"cpus": "1", "memory": "1Mi"}},
        "status": {"phase": "Running", "agent": "a1"},
    });
    create(&store, TASK, task.to_string()).await;
    create(&store, "ledger/a1", "{}".to_owned()).await;
    create(&store, "meta/cluster", "some-uid".to_owned()).await;
    create(&store, "meta/authority", "some-hash".to_owned()).await;
}

async fn keys(store: &dyn Store) -> Vec<String> {
    let listing = store.list(&Prefix::new(""), Page::default()).await.expect("it is well");
    listing.entries.iter().map(|entry| entry.key.to_string()).collect()
}

async fn phase(store: &dyn Store) -> (Value, Value) {
    let entry = store
        .get(&Key::new(TASK))
        .await
        .expect("it is well")
        .expect("it is there");
    let task: Value = serde_json::from_slice(&entry.value).expect("JSON");
    (task["status"]["phase"].clone(), task["status"]["reason"].clone())
}

fn opened(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&path.join("store.redb"), &Options::default()).expect("it was restored")
}

struct Places {
    directory: tempfile::TempDir,
}

impl Places {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

async fn places() -> Places {
    let places = Places {
        directory: tempfile::tempdir().expect("a directory can be made"),
    };
    left_behind(&places.path("data")).await;
    places
}

#[tokio::test]
async fn a_cluster_is_saved_and_restored_as_itself_or_as_a_new_one() {
    let places = places().await;
    let (data, file) = (places.text("data"), places.text("file"));
    done(&["backup", "save", &file, "--data-dir", &data]);
    assert!(refused(&["backup", "save", &file, "--data-dir", &data]).contains("exists already"));
    let shown = done(&["backup", "inspect", &file]);
    assert!(
        shown.contains("4 entries of the cluster 00000000000000000000000000000017 at revision 4"),
        "{shown}"
    );

    let same = places.text("same");
    done(&["backup", "restore", &file, "--data-dir", &same]);
    let store = opened(&places.path("same"));
    assert_eq!((store.store_uid(), phase(&store).await.0), (UID, json!("Running")));
    assert_eq!(
        keys(&store).await,
        ["ledger/a1", "meta/authority", "meta/cluster", TASK]
    );
    assert!(
        store.revision().await.expect("it is well") > 1_000_000_000,
        "no old version fits"
    );
    drop(store);
    assert!(refused(&["backup", "restore", &file, "--data-dir", &same]).contains("not empty"));

    let new = places.text("new");
    let (code, _, said) = mctl(&["backup", "restore", &file, "--data-dir", &new, "--new-cluster"]);
    assert!(code == 0 && said.contains("1 tasks had not ended"), "{said}");
    let store = opened(&places.path("new"));
    assert_ne!(store.store_uid(), UID);
    assert_eq!(phase(&store).await, (json!("Dropped"), json!("Restored")));
    assert_eq!(
        keys(&store).await,
        [TASK],
        "nothing that was promised elsewhere is kept"
    );
}

#[tokio::test]
async fn a_cluster_moves_into_etcd() {
    let places = places().await;
    let cluster = EtcdCluster::single().await;
    let (data, etcd) = (places.text("data"), cluster.endpoints().join(","));
    done(&["store", "migrate", "--from", &data, "--etcd", &etcd]);
    let store = EtcdStore::open(cluster.config("/muster/default"))
        .await
        .expect("etcd runs");
    assert_eq!((store.store_uid(), phase(&store).await.0), (UID, json!("Running")));
    assert_eq!(
        keys(&store).await,
        ["ledger/a1", "meta/authority", "meta/cluster", TASK]
    );
    let again = refused(&["store", "migrate", "--from", &data, "--etcd", &etcd]);
    assert!(
        again.contains("has to be beyond") || again.contains("not empty"),
        "{again}"
    );

    let file = places.text("file");
    done(&["backup", "save", &file, "--etcd", &etcd]);
    assert!(done(&["backup", "inspect", &file]).contains("4 entries"));
    let elsewhere = ["--etcd", &etcd, "--etcd-prefix", "/muster/none"];
    let missing = refused(&[&["backup", "save", "x"], &elsewhere[..]].concat());
    assert!(missing.contains("holds no cluster"), "{missing}");
    done(&[&["backup", "restore", &file, "--new-cluster"], &elsewhere[..]].concat());
    done(&["backup", "restore", &file, "--data-dir", &places.text("back")]);
    assert_eq!(phase(&opened(&places.path("back"))).await.0, json!("Running"));
}

#[tokio::test]
async fn nothing_is_touched_that_is_in_use_or_not_there() {
    let places = places().await;
    let (data, file) = (places.text("data"), places.text("file"));
    let lock = File::create(places.path("data").join("lock")).expect("a file can be made");
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .expect("it is free");
    let failure = refused(&["backup", "save", &file, "--data-dir", &data]);
    assert!(failure.contains("stop it first"), "{failure}");
    drop(held);
    let failure = refused(&["backup", "save", &file, "--data-dir", &places.text("none")]);
    assert!(
        failure.contains("holds no cluster") && !places.path("none").exists(),
        "{failure}"
    );
    std::fs::write(&file, "what is this").expect("a file can be written");
    let failure = refused(&["backup", "restore", &file, "--data-dir", &places.text("new")]);
    assert!(
        failure.contains("no backup of Muster") && !places.path("new").exists(),
        "{failure}"
    );
}
