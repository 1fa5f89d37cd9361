//! The conformance suite, on every store.

use std::sync::Arc;
use std::time::Duration;

use muster_store::conformance::{Fixture, under_faults};
use muster_store::fault::{FaultStore, Faults};
use muster_store::{EmbeddedStore, Lies, LyingStore, MemoryStore, Store, embedded::Options};

fn embedded_store() -> (EmbeddedStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = EmbeddedStore::open(&directory.path().join("store"), &Options::default()).expect("a new store opens");
    (store, directory)
}

mod memory {
    use super::*;

    async fn make() -> Fixture {
        Fixture::new(Arc::new(MemoryStore::new()))
    }

    muster_store::conformance_suite!(tokio::test(start_paused = true), make);
}

mod embedded {
    use super::*;

    async fn make() -> Fixture {
        let (store, directory) = embedded_store();
        Fixture::new(Arc::new(store))
            .with_guard(directory)
            .with_ttl(Duration::from_millis(300))
    }

    muster_store::conformance_suite!(tokio::test, make);
}

/// With a tail in memory so short that watches read the disk.
mod embedded_with_short_tail {
    use super::*;

    async fn make() -> Fixture {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let options = Options {
            tail_bytes: 300,
            ..Options::default()
        };
        let store = EmbeddedStore::open(&directory.path().join("store"), &options).expect("a new store opens");
        Fixture::new(Arc::new(store))
            .with_guard(directory)
            .with_ttl(Duration::from_millis(300))
    }

    muster_store::conformance_suite!(tokio::test, make);
}

mod faultless {
    use super::*;

    async fn make() -> Fixture {
        Fixture::new(Arc::new(FaultStore::new(
            Arc::new(MemoryStore::new()),
            1,
            Faults::none(),
        )))
    }

    muster_store::conformance_suite!(tokio::test(start_paused = true), make);
}

mod truthful {
    use super::*;

    async fn make() -> Fixture {
        Fixture::new(Arc::new(LyingStore::new(Arc::new(MemoryStore::new()), 1, Lies::none())))
    }

    muster_store::conformance_suite!(tokio::test(start_paused = true), make);
}

/// With every value sealed.
mod sealed {
    use muster_store::{Keyring, Prefix, SealedStore};

    use super::*;

    async fn make() -> Fixture {
        let ring = Keyring::parse(&Keyring::generate().expect("random numbers")).expect("a keyring");
        let overhead = ring.overhead();
        let inner = Arc::new(MemoryStore::new());
        let store = SealedStore::new(inner, Arc::new(ring), [Prefix::new("")]);
        Fixture::new(Arc::new(store)).with_overhead(overhead)
    }

    muster_store::conformance_suite!(tokio::test(start_paused = true), make);
}

/// Delays break no promise.
mod delayed {
    use super::*;

    async fn make() -> Fixture {
        let faults = Faults {
            delay: 0.3,
            delay_max: Duration::from_millis(5),
            ..Faults::none()
        };
        Fixture::new(Arc::new(FaultStore::new(Arc::new(MemoryStore::new()), 2, faults)))
            .with_ttl(Duration::from_secs(10))
    }

    muster_store::conformance_suite!(tokio::test(start_paused = true), make);
}

fn storm() -> Faults {
    Faults {
        unavailable_before: 0.1,
        unavailable_after: 0.1,
        late_commit: 0.1,
        delay: 0.3,
        delay_max: Duration::from_millis(10),
        watch_cut: 0.1,
        watch_repeat: 0.1,
        lease_lost: 0.0,
        compaction: 0.0,
    }
}

async fn weather(inner: Arc<dyn Store>, seed: u64) {
    let store = Arc::new(FaultStore::new(inner, seed, Faults::none()));
    let injected = under_faults(store, seed, storm()).await;
    let counts = [
        injected.unavailable_before,
        injected.unavailable_after,
        injected.late_commits,
        injected.delays,
        injected.watch_cuts,
        injected.watch_repeats,
    ];
    assert!(
        counts.iter().all(|count| *count > 0),
        "too little went wrong: {injected:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn memory_store_keeps_its_promises_under_faults() {
    for seed in 0..20 {
        weather(Arc::new(MemoryStore::new()), seed).await;
    }
}

#[tokio::test]
async fn embedded_store_keeps_its_promises_under_faults() {
    let (store, _directory) = embedded_store();
    weather(Arc::new(store), 1).await;
}
