//! What commits do.

use futures::future::join_all;

use super::Fixture;
use crate::types::{CommitError, Compare, Error, Key, LIMITS, LeaseId, Op};

fn is_conflict<T: std::fmt::Debug>(result: &Result<T, CommitError>) -> bool {
    matches!(result, Err(CommitError::Conflict { .. }))
}

pub(super) async fn create_if_absent_has_one_winner(f: &Fixture) {
    let attempts = (0..16).map(|number| {
        let compares = vec![Compare::absent(f.key("leader"))];
        async move {
            (
                number,
                f.commit(compares, vec![f.put_op("leader", &number.to_string())]).await,
            )
        }
    });
    let results = join_all(attempts).await;
    let winners: Vec<_> = results.iter().filter(|(_, result)| result.is_ok()).collect();
    let [(winner, _)] = winners[..] else {
        panic!("one of 16 wins, not {winners:?}")
    };
    assert_eq!(f.value("leader").await, Some(winner.to_string()));
    assert_eq!(
        results.iter().filter(|(_, result)| is_conflict(result)).count(),
        15,
        "the others lose by conflict"
    );
}

pub(super) async fn modified_compare_holds_for_the_last_write_only(f: &Fixture) {
    let first = f.put("a", "1").await;
    let second = f
        .commit(vec![Compare::modified(f.key("a"), first)], vec![f.put_op("a", "2")])
        .await;
    let second = second.expect("nobody wrote since");
    assert!(is_conflict(
        &f.commit(vec![Compare::modified(f.key("a"), first)], vec![f.put_op("a", "3")])
            .await
    ));
    assert!(is_conflict(
        &f.commit(vec![Compare::modified(f.key("a"), 0)], vec![f.put_op("a", "3")])
            .await
    ));
    assert_eq!(f.value("a").await.as_deref(), Some("2"));
    f.commit(vec![Compare::modified(f.key("a"), second)], vec![f.delete_op("a")])
        .await
        .expect("nobody wrote since");
    f.commit(vec![Compare::modified(f.key("a"), 0)], vec![f.put_op("a", "4")])
        .await
        .expect("it is absent");
}

pub(super) async fn created_compare_survives_updates_but_not_recreation(f: &Fixture) {
    let created = f.put("fence", "1").await;
    f.put("fence", "2").await;
    let fenced = || vec![Compare::created(f.key("fence"), created)];
    f.commit(fenced(), vec![f.put_op("x", "1")])
        .await
        .expect("an update does not break the fence");
    f.delete("fence").await;
    assert!(
        is_conflict(&f.commit(fenced(), vec![f.put_op("x", "2")]).await),
        "absent"
    );
    f.put("fence", "3").await;
    assert!(
        is_conflict(&f.commit(fenced(), vec![f.put_op("x", "3")]).await),
        "made anew"
    );
    assert_eq!(f.value("x").await.as_deref(), Some("1"));
}

pub(super) async fn not_modified_after_compare_allows_older_writes_and_absence(f: &Fixture) {
    let first = f.put("ledger", "1").await;
    let seen = f.put("other", "1").await;
    let at = |revision| vec![Compare::not_modified_after(f.key("ledger"), revision)];
    f.commit(at(seen), vec![f.put_op("x", "1")])
        .await
        .expect("written before");
    f.commit(at(first), vec![f.put_op("x", "2")])
        .await
        .expect("written exactly then");
    assert!(is_conflict(&f.commit(at(first - 1), vec![f.put_op("x", "3")]).await));
    f.put("ledger", "2").await;
    assert!(is_conflict(&f.commit(at(seen), vec![f.put_op("x", "3")]).await));
    let absent = vec![Compare::not_modified_after(f.key("none"), 0)];
    f.commit(absent, vec![f.put_op("x", "4")])
        .await
        .expect("absent keys were not modified");
}

pub(super) async fn conflict_returns_current_entries_and_writes_nothing(f: &Fixture) {
    f.put("a", "1").await;
    let before = f.revision().await;
    let compares = vec![
        Compare::absent(f.key("missing")),
        Compare::absent(f.key("a")),
        Compare::not_modified_after(f.key("a"), before),
    ];
    let ops = vec![f.put_op("b", "x"), f.delete_op("a")];
    let current = match f.commit(compares, ops).await {
        Err(CommitError::Conflict { current }) => current,
        other => panic!("a conflict was due, not {other:?}"),
    };
    let a = f.get("a").await;
    assert!(a.is_some(), "nothing was deleted");
    assert_eq!(current, [None, a.clone(), a], "one item per compare, in their order");
    assert_eq!(f.get("b").await, None, "nothing was put");
    assert_eq!(f.revision().await, before, "no revision was taken");
}

pub(super) async fn delete_of_absent_key_takes_no_revision(f: &Fixture) {
    let before = f.put("a", "1").await;
    assert_eq!(f.delete("none").await, before);
    assert_eq!(f.revision().await, before);
    let both = f.write(vec![f.delete_op("none"), f.put_op("a", "2")]).await;
    let (revision, changes) = super::next_batch(&mut f.watch("", before)).await;
    assert_eq!(revision, both);
    assert_eq!(
        changes.len(),
        1,
        "the delete that hit nothing is not a change: {changes:?}"
    );
}

pub(super) async fn transaction_without_operations_checks_and_writes_nothing(f: &Fixture) {
    let revision = f.put("a", "1").await;
    assert_eq!(f.write(vec![]).await, revision);
    let held = f.commit(vec![Compare::modified(f.key("a"), revision)], vec![]).await;
    assert_eq!(held.expect("it holds"), revision);
    assert!(is_conflict(&f.commit(vec![Compare::absent(f.key("a"))], vec![]).await));
    assert_eq!(f.revision().await, revision);
}

pub(super) async fn revisions_rise_and_are_shared_by_the_keys_of_a_transaction(f: &Fixture) {
    let first = f.put("a", "1").await;
    let second = f
        .write(vec![f.put_op("b", "1"), f.put_op("a", "2"), f.put_op("c", "1")])
        .await;
    let third = f.delete("b").await;
    assert!(first < second && second < third, "{first} {second} {third}");
    let revisions = |entry: Option<crate::Entry>| entry.map(|entry| (entry.create_revision, entry.mod_revision));
    assert_eq!(revisions(f.get("a").await), Some((first, second)));
    assert_eq!(revisions(f.get("c").await), Some((second, second)));
    assert_eq!(f.revision().await, third);
}

pub(super) async fn recreated_key_has_a_new_create_revision(f: &Fixture) {
    let first = f.put("a", "1").await;
    f.delete("a").await;
    assert_eq!(f.get("a").await, None);
    let again = f.put("a", "1").await;
    let entry = f.get("a").await.expect("it was put again");
    assert!(again > first);
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));
}

pub(super) async fn same_value_again_is_a_write(f: &Fixture) {
    let first = f.put("a", "1").await;
    let second = f.put("a", "1").await;
    assert!(second > first);
    assert_eq!(f.get("a").await.map(|entry| entry.mod_revision), Some(second));
}

pub(super) async fn any_bytes_are_a_value(f: &Fixture) {
    let bytes: Vec<u8> = (0..=255).collect();
    f.write(vec![
        Op::put(f.key("bytes"), bytes.clone()),
        Op::put(f.key("empty"), Vec::new()),
    ])
    .await;
    assert_eq!(f.get("bytes").await.map(|entry| entry.value.to_vec()), Some(bytes));
    assert_eq!(f.get("empty").await.map(|entry| entry.value.to_vec()), Some(vec![]));
}

pub(super) async fn limits_are_kept(f: &Fixture) {
    let before = f.revision().await;
    let puts = |count: usize| {
        (0..count)
            .map(|n| f.put_op(&format!("many/{n}"), "x"))
            .collect::<Vec<_>>()
    };
    let tests = |count: usize| {
        (0..count)
            .map(|n| Compare::absent(f.key(&format!("none/{n}"))))
            .collect::<Vec<_>>()
    };
    let too_large = |result| matches!(result, Err(CommitError::TooLarge(_)));
    assert!(
        too_large(f.commit(vec![], puts(LIMITS.txn_ops + 1)).await),
        "one operation too many"
    );
    assert!(
        too_large(f.commit(tests(LIMITS.txn_ops + 1), puts(1)).await),
        "one compare too many"
    );
    let key = f.key("big");
    let room = LIMITS.txn_bytes - key.as_str().len() - f.overhead;
    assert!(
        too_large(f.commit(vec![], vec![Op::put(key.clone(), vec![7; room + 1])]).await),
        "one byte too many"
    );
    assert_eq!(f.revision().await, before, "nothing of it was written");
    f.commit(tests(LIMITS.txn_ops), puts(LIMITS.txn_ops))
        .await
        .expect("as many as allowed");
    f.commit(vec![], vec![Op::put(key, vec![7; room])])
        .await
        .expect("as large as allowed");
    assert_eq!(f.get("big").await.map(|entry| entry.value.len()), Some(room));
}

pub(super) async fn key_written_twice_is_refused(f: &Fixture) {
    let before = f.revision().await;
    for second in [f.put_op("a", "2"), f.delete_op("a")] {
        let result = f.commit(vec![], vec![f.put_op("a", "1"), second]).await;
        assert!(matches!(result, Err(CommitError::Store(Error::Fatal(_)))), "{result:?}");
    }
    assert_eq!(f.revision().await, before);
    f.put("a", "3").await;
    assert_eq!(f.value("a").await.as_deref(), Some("3"), "a misuse harms nobody else");
}

pub(super) async fn empty_key_is_refused(f: &Fixture) {
    let before = f.revision().await;
    let result = f.commit(vec![], vec![Op::put(Key::new(""), "x")]).await;
    assert!(matches!(result, Err(CommitError::Store(Error::Fatal(_)))), "{result:?}");
    assert_eq!(f.revision().await, before);
}

pub(super) async fn put_under_an_unknown_lease_writes_nothing(f: &Fixture) {
    let unknown = LeaseId(u64::MAX / 2);
    let put = Op::Put {
        key: f.key("b"),
        value: "x".into(),
        lease: Some(unknown),
    };
    let result = f.commit(vec![], vec![f.put_op("a", "1"), put]).await;
    assert!(
        matches!(result, Err(CommitError::LeaseNotFound(lease)) if lease == unknown),
        "{result:?}"
    );
    assert_eq!((f.get("a").await, f.get("b").await), (None, None));
}
