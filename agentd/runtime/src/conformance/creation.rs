//! Making containers, and listing them.

use std::collections::BTreeMap;

use super::{Harness, Program, end, exit, id, state};
use crate::{ContainerSpec, Error, State};

pub(super) async fn containers_are_listed_in_the_order_of_their_ids_with_their_labels(harness: &dyn Harness) {
    let runtime = harness.runtime();
    assert_eq!(runtime.list().await.expect("listed"), [], "an empty machine has none");
    let mut spec = harness.spec(Program::Forever);
    for name in ["b", "a.2", "a"] {
        spec.labels = BTreeMap::from([("task".to_owned(), name.to_owned())]);
        runtime.create(&id(name), &spec).await.expect("created");
    }
    let listed = runtime.list().await.expect("listed");
    let found: Vec<_> = listed
        .iter()
        .map(|container| (container.id.as_str(), container.labels.get("task").unwrap_or_default()))
        .collect();
    assert_eq!(found, [("a", "a"), ("a.2", "a.2"), ("b", "b")]);
    assert!(
        listed.iter().all(|container| container.state == State::Created),
        "{listed:?}"
    );
}

pub(super) async fn creating_twice_is_creating_once(harness: &dyn Harness) {
    let (runtime, id, spec) = (harness.runtime(), id("a"), harness.spec(Program::Exit(0)));
    let both = futures::join!(runtime.create(&id, &spec), runtime.create(&id, &spec));
    both.0.and(both.1).expect("created, at once too");
    runtime.create(&id, &spec).await.expect("created again");
    assert_eq!(state(&*runtime, &id).await, Some(State::Created));
    runtime.start(&id).await.expect("started");
    let ended = exit(&*runtime, &id).await;
    runtime
        .create(&id, &spec)
        .await
        .expect("what has exited exists as well");
    assert_eq!(state(&*runtime, &id).await, Some(State::Exited(ended)));
}

pub(super) async fn creating_with_another_spec_is_a_conflict(harness: &dyn Harness) {
    let (runtime, id, spec) = (harness.runtime(), id("a"), harness.spec(Program::Forever));
    runtime.create(&id, &spec).await.expect("created");
    let mut other = spec.clone();
    other.labels.insert("another".to_owned(), "label".to_owned());
    for _ in 0..2 {
        let error = runtime.create(&id, &other).await.expect_err("another spec");
        assert!(matches!(&error, Error::Conflict(of) if *of == id), "{error}");
        runtime.start(&id).await.expect("started");
    }
    end(&*runtime, &id).await;
    assert!(
        matches!(runtime.create(&id, &other).await, Err(Error::Conflict(_))),
        "what has exited as well"
    );
}

pub(super) async fn creating_what_cannot_be_is_invalid(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let spec = harness.spec(Program::Forever);
    let invalid = [
        ContainerSpec {
            argv: Vec::new(),
            ..spec.clone()
        },
        ContainerSpec {
            argv: vec!["a\0b".to_owned()],
            ..spec.clone()
        },
        ContainerSpec {
            env: BTreeMap::from([("A=B".to_owned(), String::new())]),
            ..spec.clone()
        },
        ContainerSpec {
            working_dir: Some("relative".into()),
            ..spec.clone()
        },
        ContainerSpec {
            working_dir: Some("/sandbox/../etc".into()),
            ..spec.clone()
        },
    ];
    for spec in invalid {
        let error = runtime.create(&id("a"), &spec).await.expect_err("invalid");
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert_eq!(runtime.list().await.expect("listed"), []);
}
