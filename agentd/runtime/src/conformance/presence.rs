//! What is there: unknown, removed and found again containers, and who is woken.

use futures::StreamExt as _;

use super::{
    Ability, Harness, KILL, LONG, Program, TERM, end, exit, id, output, patiently, run, run_to_exit, state, stop, until,
};
use crate::{Error, LogQuery, State};

pub(super) async fn unknown_container_is_not_found(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("nobody"));
    let not_found =
        |result: Result<(), Error>| assert!(matches!(&result, Err(Error::NotFound(of)) if *of == id), "{result:?}");
    not_found(runtime.start(&id).await);
    not_found(runtime.stop(&id, stop(TERM, LONG)).await);
    not_found(runtime.logs(&id, &LogQuery::default()).await.map(drop));
    runtime.remove(&id).await.expect("removing it does nothing");
}

pub(super) async fn only_exited_containers_can_be_removed(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let refused =
        |result: Result<(), Error>| assert!(matches!(&result, Err(Error::Running(of)) if *of == id), "{result:?}");
    runtime
        .create(&id, &harness.spec(Program::Forever))
        .await
        .expect("created");
    refused(runtime.remove(&id).await);
    runtime.start(&id).await.expect("started");
    refused(runtime.remove(&id).await);
    assert!(matches!(state(&*runtime, &id).await, Some(State::Running { .. })));
    end(&*runtime, &id).await;
    runtime.remove(&id).await.expect("removed");
}

pub(super) async fn removed_container_is_gone_and_its_id_can_be_used_again(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Print).await;
    runtime.remove(&id).await.expect("removed");
    assert_eq!(runtime.list().await.expect("listed"), []);
    assert!(matches!(
        runtime.logs(&id, &LogQuery::default()).await,
        Err(Error::NotFound(_))
    ));
    runtime.remove(&id).await.expect("removed again");
    run(harness, &*runtime, &id, Program::Exit(4)).await;
    assert_eq!(exit(&*runtime, &id).await.code, Some(4));
    assert_eq!(
        output(&*runtime, &id, LogQuery::default()).await,
        [],
        "nothing is left of the one before"
    );
}

pub(super) async fn restarted_caller_finds_everything(harness: &dyn Harness) {
    let (created, running, exited, away) = (id("created"), id("running"), id("exited"), id("away"));
    let before = harness.runtime();
    before
        .create(&created, &harness.spec(Program::Exit(1)))
        .await
        .expect("created");
    run(harness, &*before, &running, Program::Forever).await;
    run(harness, &*before, &exited, Program::Exit(5)).await;
    let exited_before = exit(&*before, &exited).await;
    run(harness, &*before, &away, Program::Exit(6)).await;
    let running_before = state(&*before, &running).await;
    drop(before);

    let after = harness.runtime();
    assert_eq!(
        exit(&*after, &away).await.code,
        Some(6),
        "what exited while nobody looked"
    );
    assert_eq!(state(&*after, &created).await, Some(State::Created));
    assert_eq!(state(&*after, &running).await, running_before);
    assert_eq!(state(&*after, &exited).await, Some(State::Exited(exited_before)));
    after.start(&created).await.expect("started");
    assert_eq!(exit(&*after, &created).await.code, Some(1));
    after.stop(&running, stop(TERM, LONG)).await.expect("stopped");
    assert_eq!(exit(&*after, &running).await.signal, Some(TERM));
}

pub(super) async fn what_runs_is_counted_and_cpu_time_never_falls(harness: &dyn Harness) {
    let (runtime, a) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &a, Program::Forever).await;
    let ids = [a.clone(), id("nobody")];
    let used = async || {
        let used = runtime.usage(&ids).await.expect("counted").containers;
        assert!(used.keys().all(|counted| *counted == a), "{used:?}");
        used.get(&a).cloned()
    };
    if let Some(first) = used().await {
        assert!(first.cpu.is_some() && first.pids.is_some(), "{first:?}");
        let second = used().await.expect("it runs still");
        assert!(second.cpu >= first.cpu, "{first:?} {second:?}");
    } else {
        assert!(!harness.can(Ability::LimitMemory), "what is limited can be counted");
    }
    end(&*runtime, &a).await;
    runtime.remove(&a).await.expect("removed");
    assert_eq!(used().await, None, "it is gone");
}

pub(super) async fn change_wakes_its_reader(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let mut changes = runtime.changes();
    runtime
        .create(&id, &harness.spec(Program::Forever))
        .await
        .expect("created");
    patiently("creating is a change", changes.next())
        .await
        .expect("changes never end");
    runtime.start(&id).await.expect("started");
    until(&*runtime, &id, "it runs", |state| {
        matches!(state, State::Running { .. }).then_some(())
    })
    .await;
    // A reader who comes later, and one for whom another caller does something.
    let other = harness.runtime();
    other.list().await.expect("listed");
    let mut others = other.changes();
    let woken = async {
        while !matches!(state(&*other, &id).await, Some(State::Exited(_))) {
            others.next().await.expect("changes never end");
        }
    };
    let (_, ended) = futures::join!(patiently("the other caller is woken", woken), end(&*runtime, &id));
    assert_eq!(ended.signal, Some(KILL));
}
