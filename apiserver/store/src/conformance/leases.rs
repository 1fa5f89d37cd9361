//! What leases do to their keys.
//!
//! Time is measured from one side only, so that a slow machine cannot fail a case: a lease must not end early.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Fixture, brief, next_batch};
use crate::types::{CommitError, LeaseError};

/// So long that it does not end within a case.
const LONG: Duration = Duration::from_secs(3600);

pub(super) async fn keys_of_an_expired_lease_vanish_together(f: &Fixture) {
    let asked = Instant::now();
    let lease = f.grant(f.ttl).await;
    f.put("stays", "x").await;
    let put = f.write(vec![f.put_under("b", lease), f.put_under("a", lease)]).await;
    let last = f.write(vec![f.put_under("c", lease)]).await;
    assert_eq!(
        f.get("a").await.map(|entry| (entry.lease, entry.mod_revision)),
        Some((Some(lease), put))
    );
    let (revision, changes) = next_batch(&mut f.watch("", last)).await;
    assert!(asked.elapsed() >= f.ttl, "it ended after {:?}", asked.elapsed());
    assert_eq!(revision, f.revision().await);
    let (a, b, c) = (f.key("a"), f.key("b"), f.key("c"));
    assert_eq!(
        brief(&changes),
        [(a.as_str(), None), (b.as_str(), None), (c.as_str(), None)]
    );
    assert_eq!(f.names("", None, None).await.0, ["stays"]);
    assert!(matches!(f.store.keep_alive(lease).await, Err(LeaseError::Gone(gone)) if gone == lease));
}

pub(super) async fn lease_does_not_end_early(f: &Fixture) {
    // A machine that stalls for the last twentieth of the ttl proves nothing: such a run is repeated.
    for attempt in 0..20 {
        let name = format!("k/{attempt}");
        let asked = Instant::now();
        let lease = f.grant(f.ttl).await;
        f.write(vec![f.put_under(&name, lease)]).await;
        sleep_until(asked + f.ttl * 19 / 20).await;
        // Stores that look at their leases when they write are given the occasion.
        f.put("occasion", "x").await;
        let entry = f.get(&name).await;
        if asked.elapsed() < f.ttl {
            assert!(entry.is_some(), "it ended within {:?}", asked.elapsed());
            return;
        }
    }
    panic!("the machine stalled twenty times");
}

pub(super) async fn keep_alive_extends_a_lease_and_writes_nothing(f: &Fixture) {
    // A machine that stalls for a third of the ttl lets the lease end, which proves nothing: such a run is repeated.
    for attempt in 0..20 {
        let name = format!("k/{attempt}");
        let granted = Instant::now();
        let lease = f.grant(f.ttl).await;
        let put = f.write(vec![f.put_under(&name, lease)]).await;
        let mut watch = f.watch("", put);
        sleep_until(granted + f.ttl * 2 / 3).await;
        let kept = Instant::now();
        let result = f.store.keep_alive(lease).await;
        if kept.elapsed() + (kept - granted) > f.ttl {
            continue;
        }
        result.expect("it was kept alive in time");
        assert_eq!(f.revision().await, put, "a keep-alive writes nothing");
        let (revision, _) = next_batch(&mut watch).await;
        assert!(
            kept.elapsed() >= f.ttl,
            "it ended {:?} after it was kept alive",
            kept.elapsed()
        );
        assert!(revision > put);
        return;
    }
    panic!("the machine stalled twenty times");
}

pub(super) async fn keep_alive_of_an_ended_lease_is_refused(f: &Fixture) {
    let lease = f.grant(LONG).await;
    f.store.keep_alive(lease).await.expect("it lives");
    f.store.revoke(lease).await.expect("a healthy store revokes");
    assert!(matches!(f.store.keep_alive(lease).await, Err(LeaseError::Gone(gone)) if gone == lease));
}

pub(super) async fn revoked_lease_takes_its_keys_at_one_revision(f: &Fixture) {
    let (lease, other) = (f.grant(LONG).await, f.grant(LONG).await);
    f.write(vec![f.put_under("a", lease)]).await;
    let put = f.write(vec![f.put_under("c", lease), f.put_under("b", other)]).await;
    f.store.revoke(lease).await.expect("a healthy store revokes");
    assert_eq!(
        f.names("", None, None).await.0,
        ["b"],
        "they are gone when the call returns"
    );
    let (revision, changes) = next_batch(&mut f.watch("", put)).await;
    assert_eq!(revision, f.revision().await, "one revision for all");
    assert_eq!(
        brief(&changes),
        [(f.key("a").as_str(), None), (f.key("c").as_str(), None)]
    );
}

pub(super) async fn revoking_twice_is_no_error(f: &Fixture) {
    let lease = f.grant(LONG).await;
    let before = f.put("a", "x").await;
    f.store.revoke(lease).await.expect("it lives");
    f.store.revoke(lease).await.expect("it is gone, as was asked for");
    assert_eq!(f.revision().await, before, "a lease without keys takes no revision");
}

pub(super) async fn put_under_an_ended_lease_is_refused(f: &Fixture) {
    let lease = f.grant(LONG).await;
    f.store.revoke(lease).await.expect("a healthy store revokes");
    let before = f.revision().await;
    let result = f
        .commit(vec![], vec![f.put_op("a", "x"), f.put_under("b", lease)])
        .await;
    assert!(
        matches!(result, Err(CommitError::LeaseNotFound(missing)) if missing == lease),
        "{result:?}"
    );
    assert_eq!(
        f.names("", None, None).await.0,
        Vec::<String>::new(),
        "nothing of it was written"
    );
    assert_eq!(f.revision().await, before);
}

pub(super) async fn put_without_lease_detaches(f: &Fixture) {
    let lease = f.grant(LONG).await;
    f.write(vec![f.put_under("a", lease)]).await;
    f.put("a", "kept").await;
    assert_eq!(f.get("a").await.and_then(|entry| entry.lease), None);
    f.store.revoke(lease).await.expect("a healthy store revokes");
    assert_eq!(f.value("a").await.as_deref(), Some("kept"));
}

pub(super) async fn put_under_another_lease_moves_the_key(f: &Fixture) {
    let (first, second) = (f.grant(LONG).await, f.grant(LONG).await);
    f.write(vec![f.put_under("a", first)]).await;
    f.write(vec![f.put_under("a", second)]).await;
    f.store.revoke(first).await.expect("a healthy store revokes");
    assert_eq!(f.get("a").await.and_then(|entry| entry.lease), Some(second));
    f.store.revoke(second).await.expect("a healthy store revokes");
    assert_eq!(f.get("a").await, None);
}

pub(super) async fn deleted_key_is_detached(f: &Fixture) {
    let lease = f.grant(LONG).await;
    f.write(vec![f.put_under("a", lease), f.put_under("b", lease)]).await;
    f.delete("a").await;
    f.put("a", "again").await;
    f.store.revoke(lease).await.expect("a healthy store revokes");
    assert_eq!(f.value("a").await.as_deref(), Some("again"));
    assert_eq!(f.get("b").await, None);
}

pub(super) async fn lease_ids_are_not_used_twice(f: &Fixture) {
    let mut leases = Vec::new();
    for _ in 0..10 {
        let lease = f.grant(LONG).await;
        assert!(!leases.contains(&lease), "{lease:?} in {leases:?}");
        f.store.revoke(lease).await.expect("a healthy store revokes");
        leases.push(lease);
    }
}
