//! What watches show, and when they end.

use futures::StreamExt;
use futures::future::join_all;

use super::{Fixture, brief, next_batch, next_item};
use crate::types::{Compare, Error, Revision, WatchError, WatchStream};

async fn revisions(watch: &mut WatchStream, count: usize) -> Vec<Revision> {
    let mut revisions = Vec::new();
    for _ in 0..count {
        revisions.push(next_batch(watch).await.0);
    }
    revisions
}

pub(super) async fn watch_from_the_past_replays_history(f: &Fixture) {
    let start = f.revision().await;
    let mut written = Vec::new();
    for number in 0..200 {
        written.push(f.put("a", &number.to_string()).await);
    }
    written.push(f.delete("a").await);
    let mut watch = f.watch("", start);
    assert_eq!(revisions(&mut watch, 200).await, written[..200]);
    let (revision, changes) = next_batch(&mut watch).await;
    assert_eq!(
        (revision, brief(&changes)),
        (written[200], vec![(f.key("a").as_str(), None)])
    );
}

pub(super) async fn watch_from_now_leaves_out_what_was(f: &Fixture) {
    let now = f.put("a", "old").await;
    let mut watch = f.watch("", now);
    let next = f.put("a", "new").await;
    let (revision, changes) = next_batch(&mut watch).await;
    assert_eq!(
        (revision, brief(&changes)),
        (next, vec![(f.key("a").as_str(), Some(&b"new"[..]))])
    );
}

pub(super) async fn watch_batches_hold_whole_revisions_in_key_order(f: &Fixture) {
    let start = f.write(vec![f.put_op("b", "0"), f.put_op("d", "0")]).await;
    let mut watch = f.watch("", start);
    let ops = vec![
        f.put_op("d", "1"),
        f.delete_op("b"),
        f.put_op("a", "1"),
        f.put_op("c", "1"),
    ];
    let written = f.write(ops).await;
    let (revision, changes) = next_batch(&mut watch).await;
    let (a, b, c, d) = (f.key("a"), f.key("b"), f.key("c"), f.key("d"));
    let one = Some(&b"1"[..]);
    let expected = vec![
        (a.as_str(), one),
        (b.as_str(), None),
        (c.as_str(), one),
        (d.as_str(), one),
    ];
    assert_eq!((revision, brief(&changes)), (written, expected));
}

pub(super) async fn watch_shows_only_its_prefix(f: &Fixture) {
    let start = f.revision().await;
    let mut watch = f.watch("b/", start);
    f.put("a/1", "x").await;
    f.put("b", "x").await;
    f.put("b0", "x").await;
    let mixed = f
        .write(vec![f.put_op("a/1", "y"), f.put_op("b/1", "y"), f.put_op("c", "y")])
        .await;
    let (revision, changes) = next_batch(&mut watch).await;
    assert_eq!(
        (revision, brief(&changes)),
        (mixed, vec![(f.key("b/1").as_str(), Some(&b"y"[..]))])
    );
}

pub(super) async fn watch_entries_equal_read_entries(f: &Fixture) {
    let start = f.put("a", "1").await;
    let mut watch = f.watch("a", start);
    f.put("a", "2").await;
    let (_, changes) = next_batch(&mut watch).await;
    assert_eq!(changes[0].current, f.get("a").await, "with revisions, value and lease");
}

pub(super) async fn two_watches_see_the_same(f: &Fixture) {
    let start = f.revision().await;
    let (mut one, mut other) = (f.watch("", start), f.watch("", start));
    let mut seen = Vec::new();
    for number in 0..20 {
        f.put(&format!("k/{}", number % 3), &number.to_string()).await;
        seen.push(next_batch(&mut one).await);
    }
    for item in seen {
        assert_eq!(next_batch(&mut other).await, item);
    }
}

pub(super) async fn watch_resumes_without_loss_or_repetition(f: &Fixture) {
    let start = f.revision().await;
    let mut written = Vec::new();
    for number in 0..30 {
        written.push(f.put("a", &number.to_string()).await);
    }
    let mut seen = Vec::new();
    let mut position = start;
    while seen.len() < written.len() {
        let mut watch = f.watch("", position);
        for _ in 0..7.min(written.len() - seen.len()) {
            position = next_batch(&mut watch).await.0;
            seen.push(position);
        }
    }
    assert_eq!(seen, written);
}

pub(super) async fn watch_sees_concurrent_commits_in_order(f: &Fixture) {
    let start = f.revision().await;
    let mut watch = f.watch("", start);
    let commits = (0..100).map(|number| {
        let key = f.key(&format!("k/{number}"));
        f.commit(
            vec![Compare::absent(key)],
            vec![f.put_op(&format!("k/{number}"), "x"), f.put_op("shared", "x")],
        )
    });
    let committed = join_all(commits);
    let (results, seen) = futures::join!(committed, revisions(&mut watch, 100));
    let mut acknowledged: Vec<_> = results
        .into_iter()
        .map(|result| result.expect("nobody else has the key"))
        .collect();
    acknowledged.sort_unstable();
    assert_eq!(seen, acknowledged, "every commit once, in the order of revisions");
}

pub(super) async fn watch_from_compacted_history_is_told_so(f: &Fixture) {
    let first = f.put("a", "1").await;
    f.put("a", "2").await;
    let third = f.put("a", "3").await;
    f.store.compact(third).await.expect("a healthy store compacts");
    let mut watch = f.watch("", first);
    match next_item(&mut watch).await {
        Err(WatchError::Compacted { compacted }) => assert!(compacted >= third, "{compacted} {third}"),
        other => panic!("the history is gone, so this is wrong: {other:?}"),
    }
    assert!(watch.next().await.is_none(), "a watch ends after its error");
}

pub(super) async fn compaction_keeps_values_and_later_history(f: &Fixture) {
    let first = f.put("a", "1").await;
    let second = f.put("b", "1").await;
    let third = f.put("a", "2").await;
    let before = f.get("b").await;
    f.store.compact(second).await.expect("a healthy store compacts");
    f.store
        .compact(first)
        .await
        .expect("what is forgotten already can be forgotten again");
    assert_eq!(f.get("b").await, before);
    assert_eq!(f.revision().await, third, "forgetting is not a change");
    let mut watch = f.watch("", second);
    assert_eq!(next_batch(&mut watch).await.0, third);
    let fourth = f.put("a", "3").await;
    assert_eq!(next_batch(&mut watch).await.0, fourth);
}

pub(super) async fn compaction_of_the_future_is_refused(f: &Fixture) {
    let now = f.put("a", "1").await;
    let result = f.store.compact(now + 1000).await;
    assert!(matches!(result, Err(Error::Fatal(_))), "{result:?}");
    let mut watch = f.watch("", now - 1);
    assert_eq!(next_batch(&mut watch).await.0, now, "nothing was forgotten");
}
