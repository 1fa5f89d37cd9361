use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::{Limits, LogQuery, Rootfs, State};

const SECOND: Duration = Duration::from_secs(1);

fn fake() -> FakeRuntime {
    let start = Instant::now();
    FakeRuntime::new(move || i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))
}

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).expect("an id")
}

fn spec(command: &str) -> ContainerSpec {
    ContainerSpec {
        argv: command.split(' ').map(str::to_owned).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        rootfs: Rootfs::Host,
        mounts: Vec::new(),
        memory: Vec::new(),
        variables: None,
        devices: Vec::new(),
        limits: Limits::default(),
        labels: BTreeMap::new(),
    }
}

async fn run(fake: &FakeRuntime, name: &str, command: &str) -> ContainerId {
    let id = id(name);
    fake.create(&id, &spec(command)).await.expect("created");
    fake.start(&id).await.expect("started");
    id
}

async fn state(fake: &FakeRuntime, id: &ContainerId) -> Option<State> {
    let listed = fake.list().await.expect("listed");
    listed
        .into_iter()
        .find(|container| container.id == *id)
        .map(|container| container.state)
}

async fn exit(fake: &FakeRuntime, id: &ContainerId) -> Exit {
    match state(fake, id).await {
        Some(State::Exited(exit)) => exit,
        other => panic!("not exited: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn command_takes_its_virtual_time() {
    let fake = fake();
    let id = run(&fake, "a", "sleep 5").await;
    let mut changes = fake.changes();
    assert!(matches!(state(&fake, &id).await, Some(State::Running { .. })));
    changes.next().await.expect("a change");
    let exit = exit(&fake, &id).await;
    assert_eq!((exit.code, exit.started_ms, exit.finished_ms), (Some(0), Some(0), 5000));
}

#[tokio::test(start_paused = true)]
async fn what_happened_long_ago_has_the_time_it_happened_at() {
    let fake = fake();
    let (a, b) = (
        run(&fake, "a", "fake run=3 exit=1").await,
        run(&fake, "b", "fake run=2 signal=11").await,
    );
    tokio::time::advance(100 * SECOND).await;
    let history: Vec<_> = fake
        .history()
        .into_iter()
        .skip(4)
        .map(|event| (event.time_ms, event.id))
        .collect();
    assert_eq!(history, [(2000, b), (3000, a)], "in the order of their times");
}

#[tokio::test(start_paused = true)]
async fn words_of_a_command_make_its_behaviour() {
    let cases = [
        ("true", Behaviour::exits(Duration::ZERO, 0)),
        ("/bin/false", Behaviour::exits(Duration::ZERO, 1)),
        ("sleep 0.5", Behaviour::exits(SECOND / 2, 0)),
        ("sleep infinity", Behaviour::forever()),
        ("python train.py", Behaviour::forever()),
        ("fake run=2 oom=1", Behaviour::ends(Ending::OutOfMemory(2 * SECOND))),
        ("fake ignore-signals=1", Behaviour::forever().ignoring_signals()),
        (
            "fake cannot-run=why",
            Behaviour::ends(Ending::CannotRun("why".to_owned())),
        ),
        (
            "echo a b",
            Behaviour::exits(Duration::ZERO, 0).printing(Duration::ZERO, crate::Stream::Stdout, "a b\n"),
        ),
    ];
    for (command, behaviour) in cases {
        assert_eq!(Behaviour::of(&spec(command)), behaviour, "{command}");
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_call_fails_at_its_deadline_and_may_have_happened() {
    let fake = fake();
    let before = Instant::now();
    fake.fault_once(Call::Create, Fault::Hang);
    fake.fault_once(Call::Create, Fault::DoThenHang);
    let a = id("a");
    for there in [None, Some(State::Created)] {
        let error = fake.create(&a, &spec("true")).await.expect_err("it hangs");
        assert!(matches!(error, Error::Deadline { call: "create", .. }), "{error}");
        assert_eq!(state(&fake, &a).await, there);
    }
    assert_eq!(before.elapsed(), 2 * CREATE_DEADLINE);
    fake.create(&a, &spec("true"))
        .await
        .expect("faults were for one call each");
}

#[tokio::test(start_paused = true)]
async fn faults_are_chosen_by_call_and_container() {
    let fake = fake();
    let error = Error::System {
        context: "disk".to_owned(),
        message: "full".to_owned(),
    };
    fake.set_faults(move |call, of| {
        (call == Call::Start && of == Some(&id("bad"))).then(|| Fault::Fail(error.clone()))
    });
    run(&fake, "good", "true").await;
    fake.create(&id("bad"), &spec("true")).await.expect("created");
    assert!(matches!(fake.start(&id("bad")).await, Err(Error::System { .. })));
    assert_eq!((fake.starts(&id("good")), fake.starts(&id("bad"))), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn starts_are_counted_over_removals() {
    let fake = fake();
    for _ in 0..2 {
        let id = run(&fake, "a", "true").await;
        fake.start(&id).await.expect("does nothing");
        fake.remove(&id).await.expect("removed");
    }
    assert_eq!(fake.starts(&id("a")), 2);
}

#[tokio::test(start_paused = true)]
async fn reboot_ends_everything_and_nobody_knows_how() {
    let fake = fake();
    let (done, running, created) = (
        run(&fake, "a", "exit 3").await,
        run(&fake, "b", "sleep 60").await,
        id("c"),
    );
    fake.create(&created, &spec("true")).await.expect("created");
    fake.clone().reboot();
    assert_eq!(exit(&fake, &done).await.code, Some(3), "what had exited keeps its exit");
    let lost = exit(&fake, &running).await;
    assert_eq!((lost.code, lost.signal, lost.started_ms), (None, None, Some(0)));
    assert!(lost.error.is_some() && exit(&fake, &created).await.started_ms.is_none());
}

#[tokio::test(start_paused = true)]
async fn hands_from_outside_end_and_take_containers() {
    let fake = fake();
    let (a, b, c) = (
        run(&fake, "a", "serve").await,
        run(&fake, "b", "serve").await,
        run(&fake, "c", "serve").await,
    );
    let mut changes = fake.changes();
    fake.kill(&a, 9);
    changes.next().await.expect("a change");
    fake.exit(&b, 4);
    fake.vanish(&c);
    assert_eq!(
        (exit(&fake, &a).await.signal, exit(&fake, &b).await.code),
        (Some(9), Some(4))
    );
    assert_eq!(state(&fake, &c).await, None);
    assert!(matches!(
        fake.logs(&c, &LogQuery::default()).await,
        Err(Error::NotFound(_))
    ));
}
