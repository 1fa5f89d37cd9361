//! What gets and lists show.

use super::Fixture;
use crate::types::{Entry, Page};

pub(super) async fn list_is_in_byte_order_and_ends_with_the_prefix(f: &Fixture) {
    // `.` and `0` are the neighbours of `/`; the last two sort behind every ASCII key.
    for name in [
        "b/2",
        "b/10",
        "b",
        "b.",
        "b0",
        "a/9",
        "c",
        "b/",
        "b/\u{e4}",
        "b/\u{1f600}",
    ] {
        f.put(name, "x").await;
    }
    assert_eq!(
        f.names("b/", None, None).await.0,
        ["b/", "b/10", "b/2", "b/\u{e4}", "b/\u{1f600}"]
    );
    assert_eq!(f.names("b", None, None).await.0.len(), 8);
    assert_eq!(f.names("d", None, None).await, (vec![], false));
    let all = f.names("", None, None).await.0;
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!((all.len(), &all), (10, &sorted));
}

pub(super) async fn list_pages_do_not_overlap_or_skip(f: &Fixture) {
    for number in 0..7 {
        f.put(&format!("p/{number}"), "x").await;
    }
    f.put("q", "x").await;
    assert_eq!(
        f.names("p/", None, Some(3)).await,
        (vec!["p/0".into(), "p/1".into(), "p/2".into()], true)
    );
    assert_eq!(
        f.names("p/", Some("p/2"), Some(3)).await,
        (vec!["p/3".into(), "p/4".into(), "p/5".into()], true)
    );
    assert_eq!(f.names("p/", Some("p/5"), Some(3)).await, (vec!["p/6".into()], false));
    let (_, more) = f.names("p/", Some("p/3"), Some(3)).await;
    assert!(!more, "exactly three are left");
    assert_eq!(f.names("p/", Some("p/6"), None).await, (vec![], false));
    // The place to go on from need not exist (any more).
    f.delete("p/3").await;
    assert_eq!(f.names("p/", Some("p/3"), Some(1)).await, (vec!["p/4".into()], true));
    assert_eq!(
        f.names("p/", Some("a"), Some(1)).await,
        (vec!["p/0".into()], true),
        "before the prefix"
    );
    assert_eq!(
        f.names("p/", Some("z"), None).await,
        (vec![], false),
        "behind the prefix"
    );
}

pub(super) async fn list_says_what_revision_it_shows(f: &Fixture) {
    let first = f.put("a", "1").await;
    let last = f.put("b", "1").await;
    let listing = f
        .store
        .list(&f.prefix("a"), Page::default())
        .await
        .expect("a healthy store answers");
    assert_eq!(
        listing.revision, last,
        "the revision of the store, not of the newest entry listed"
    );
    let expected = Entry {
        key: f.key("a"),
        value: "1".into(),
        create_revision: first,
        mod_revision: first,
        lease: None,
    };
    assert_eq!(listing.entries, [expected]);
}

pub(super) async fn reads_see_acknowledged_writes(f: &Fixture) {
    for number in 0..50 {
        let revision = f.put("a", &number.to_string()).await;
        assert_eq!(f.get("a").await.map(|entry| entry.mod_revision), Some(revision));
        assert!(f.revision().await >= revision);
        let listing = f
            .store
            .list(&f.prefix("a"), Page::default())
            .await
            .expect("a healthy store answers");
        assert_eq!(listing.entries.first().map(|entry| entry.mod_revision), Some(revision));
    }
}
