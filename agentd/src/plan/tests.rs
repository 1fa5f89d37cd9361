//! One case per rule.

use std::time::Duration;

use muster_api::duration::Span;
use muster_api::task_state::Phase;
use muster_api::v1::{Attempt, Desired, Kill, RestartPolicy, Signal, Task, TaskReason, Unreachable, UnreachablePolicy};
use muster_runtime::registry::{PullError, Seen};
use muster_runtime::{Error, Exit, Labels, State};

use super::testing::*;
use super::*;
use crate::limits::{GRACE_DEFAULT, PULL_PATIENCE, PULL_TOLD_EVERY, RETRY_FIRST, START_PATIENCE, STOP_AGAIN};
use crate::pulls::{FailedPull, Pull, PullKey, Want};
use crate::status::VANISHED;

fn nothing(_: &mut Task) {}

fn killed(task: &mut Task) {
    task.spec.desired = Desired::Killed;
}

fn deleted(task: &mut Task) {
    task.metadata.deletion_timestamp = Some(time(START_MS));
}

fn attempts(task: &mut Task, attempts: &[Attempt]) {
    let status = task.status.as_mut().expect("bound");
    status.attempts = attempts.to_vec();
    status.started_at = attempts.first().and_then(|attempt| attempt.started_at.clone());
}

fn unfinished(number: u32) -> Attempt {
    Attempt {
        number,
        started_at: Some(time(START_MS)),
        ..Attempt::default()
    }
}

fn finished(number: u32, code: i32) -> Attempt {
    Attempt {
        finished_at: Some(time(START_MS + 1000)),
        exit_code: Some(code),
        ..unfinished(number)
    }
}

fn retrying(policy: RestartPolicy) -> impl Fn(&mut Task) {
    move |task| task.spec.restart_policy = policy
}

const PREPARING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::Preparing));
const STARTED: Option<(Phase, TaskReason)> = Some((Phase::Running, TaskReason::Started));
const BACK_OFF: Option<(Phase, TaskReason)> = Some((Phase::Running, TaskReason::BackOff));
const KILLING: Option<(Phase, TaskReason)> = Some((Phase::Killing, TaskReason::KillRequested));
const KILLED: Option<(Phase, TaskReason)> = Some((Phase::Killed, TaskReason::KillRequested));
const VANISHED_TASK: Option<(Phase, TaskReason)> = Some((Phase::Failed, TaskReason::ContainerVanished));

#[test]
fn a_bound_task_is_prepared_and_said_to_start() {
    Scene::of(nothing).check(&["create 1"], PREPARING);
}

#[test]
fn a_command_is_not_run_before_the_api_server_knows_that_it_was_taken_up() {
    Scene::of(nothing).with("t", 1, State::Created).check(&[], PREPARING);
    Scene::at(Phase::Starting, nothing)
        .with("t", 1, State::Created)
        .check(&["start 1"], PREPARING);
}

#[test]
fn nothing_new_is_started_without_a_session_but_what_runs_is_looked_after() {
    let mut scene = Scene::at(Phase::Starting, nothing);
    scene.may_start = false;
    scene.check(&[], PREPARING);
    let mut scene = Scene::at(Phase::Starting, nothing).with("t", 1, State::Created);
    scene.may_start = false;
    scene.check(&[], PREPARING);
    let mut scene = Scene::at(Phase::Running, retrying(RestartPolicy::Always)).with("t", 1, exit(1));
    scene.may_start = false;
    scene.check(&["create 2"], BACK_OFF);
}

#[test]
fn what_another_machine_of_this_name_has_run_is_not_begun_again_here() {
    let elsewhere = |task: &mut Task| {
        retrying(RestartPolicy::Always)(task);
        attempts(task, &[finished(1, 1)]);
    };
    let mut scene = Scene::at(Phase::Running, elsewhere);
    scene.may_start = false;
    scene.check(&[], BACK_OFF);
    scene.may_start = true;
    scene.check(&["create 2"], BACK_OFF);
}

fn fencing(task: &mut Task) {
    task.spec.restart_policy = RestartPolicy::Always;
    task.spec.unreachable = Some(Unreachable {
        policy: UnreachablePolicy::SelfFence,
        after: Some(Span::from_secs(60)),
        keep: None,
    });
}

#[test]
fn what_fences_itself_is_not_begun_again_without_a_session() {
    let mut scene = Scene::at(Phase::Running, fencing).with("t", 1, exit(1));
    scene.may_start = false;
    scene.check(&[], BACK_OFF);
    scene.may_start = true;
    scene.check(&["create 2"], BACK_OFF);
    let mut scene = Scene::at(Phase::Running, fencing)
        .with("t", 1, exit(1))
        .with("t", 2, State::Created);
    scene.may_start = false;
    scene.check(&[], BACK_OFF);
}

#[test]
fn what_fences_itself_is_given_back_where_nothing_can_end_it() {
    let mut scene = Scene::of(fencing);
    let plan = scene.check(&["create 1"], PREPARING);
    let Some(Action::Create { spec, .. }) = plan.actions.values().flatten().next() else {
        panic!("{plan:?}")
    };
    let fence = spec.limits.fence.expect("it has one");
    assert_eq!(
        (fence.after.as_secs(), fence.signal, fence.grace.as_secs()),
        (60, 15, 5)
    );
    scene.can_fence = false;
    scene.check(&[], Some((Phase::Dropped, TaskReason::NotStarted)));
}

#[test]
fn a_running_command_is_said_to_run_once() {
    let plan = Scene::at(Phase::Starting, nothing)
        .with("t", 1, running())
        .check(&[], STARTED);
    let status = said(&plan).expect("it is said").clone();
    assert_eq!(status.started_at, Some(time(START_MS)));
    assert_eq!(status.attempts, [unfinished(1)]);
    let shown = |task: &mut Task| task.status = Some(status);
    Scene::of(shown).with("t", 1, running()).check(&[], None);
}

#[test]
fn every_end_of_a_command_is_told_as_what_it_was() {
    let oom = State::Exited(Exit {
        signal: Some(9),
        oom_killed: true,
        ..Exit::never_ran(START_MS, "")
    });
    let cases = [
        (exit(0), Phase::Finished, TaskReason::Completed),
        (exit(2), Phase::Failed, TaskReason::NonZeroExit),
        (killed_by(11), Phase::Failed, TaskReason::Signaled),
        (oom, Phase::Failed, TaskReason::OutOfMemory),
        (
            State::Exited(Exit::never_ran(START_MS, "no such file")),
            Phase::Failed,
            TaskReason::LaunchFailed,
        ),
    ];
    for (state, phase, reason) in cases {
        for before in [Phase::Staging, Phase::Starting, Phase::Running] {
            let plan = Scene::at(before, nothing)
                .with("t", 1, state.clone())
                .check(&[], Some((phase, reason)));
            let status = said(&plan).expect("it is said");
            assert!(status.finished_at.is_some());
            assert_eq!(status.attempts.len(), 1);
        }
    }
}

#[test]
fn a_container_that_disappeared_failed_the_task() {
    let ran = |task: &mut Task| attempts(task, &[unfinished(1)]);
    let plan = Scene::at(Phase::Running, ran).check(&[], VANISHED_TASK);
    let status = said(&plan).expect("it is said");
    assert_eq!(status.attempts[0].error.as_deref(), Some(VANISHED));
    assert_eq!(status.exit_code, None);
}

#[test]
fn a_container_that_was_seen_here_and_disappeared_is_not_made_again() {
    let mut scene = Scene::at(Phase::Starting, nothing);
    let seen = Scene::new().with("t", 1, running()).containers;
    scene.memory.listed(&seen, []);
    scene.check(&[], VANISHED_TASK);
}

#[test]
fn a_container_that_disappeared_is_run_again_if_its_policy_says_so() {
    let ran = |task: &mut Task| {
        task.spec.restart_policy = RestartPolicy::OnFailure;
        attempts(task, &[unfinished(1)]);
    };
    Scene::at(Phase::Running, ran).check(&[], BACK_OFF);
}

#[test]
fn a_task_killed_before_anything_was_made_ends_at_once() {
    for phase in [Phase::Staging, Phase::Starting] {
        Scene::at(phase, killed).check(&[], KILLED);
        Scene::at(phase, deleted).check(&[], KILLED);
    }
}

#[test]
fn a_task_killed_when_prepared_is_stopped_and_its_command_never_run() {
    Scene::at(Phase::Starting, killed)
        .with("t", 1, State::Created)
        .check(&["stop 1 15"], KILLING);
    let stopped = State::Exited(Exit::never_ran(START_MS, "stopped"));
    Scene::at(Phase::Killing, killed)
        .with("t", 1, stopped)
        .check(&[], KILLED);
}

#[test]
fn a_running_task_is_stopped_on_request_and_has_ended_when_nothing_is_left() {
    for asked in [killed, deleted] {
        Scene::at(Phase::Running, asked)
            .with("t", 1, running())
            .check(&["stop 1 15"], KILLING);
        Scene::at(Phase::Killing, asked)
            .with("t", 1, killed_by(15))
            .check(&[], KILLED);
    }
}

#[test]
fn a_task_is_stopped_the_way_it_wants() {
    let scene = Scene::at(Phase::Running, |task| {
        killed(task);
        task.spec.kill = Some(Kill {
            grace_period: Some(Span::from_secs(42)),
            signal: Some(Signal::SIGINT),
        });
    });
    let plan = scene.with("t", 1, running()).check(&["stop 1 2"], KILLING);
    let Some(Action::Stop(_, stop)) = plan.actions["uid-t"].first() else {
        panic!("{plan:?}")
    };
    assert_eq!(stop.grace, Duration::from_secs(42));
}

#[test]
fn a_stop_is_sent_once_and_much_later_a_kill() {
    let mut scene = Scene::at(Phase::Running, killed).with("t", 1, running());
    let plan = scene.check(&["stop 1 15"], KILLING);
    let now = Timestamp::from_millisecond(scene.now_ms).expect("in range");
    scene.memory.acted(&plan.actions["uid-t"][0], &Ok(()), now);
    let plan = scene.check(&[], KILLING);
    assert_eq!(plan.wake, Some(memory::after(now, GRACE_DEFAULT + STOP_AGAIN)));
    scene.now_ms += 15_000;
    scene.check(&["stop 1 9"], KILLING);
}

#[test]
fn what_had_finished_before_it_was_told_to_stop_has_finished() {
    Scene::at(Phase::Running, killed)
        .with("t", 1, exit(0))
        .check(&[], Some((Phase::Finished, TaskReason::Completed)));
    Scene::at(Phase::Killing, killed)
        .with("t", 1, exit(0))
        .check(&[], KILLED);
    Scene::at(Phase::Running, killed)
        .with("t", 1, exit(1))
        .check(&[], KILLED);
}

#[test]
fn a_task_killed_between_two_runs_is_not_run_again() {
    let waiting = |task: &mut Task| {
        killed(task);
        task.spec.restart_policy = RestartPolicy::Always;
    };
    Scene::at(Phase::Running, waiting)
        .with("t", 1, exit(0))
        .after_secs(100)
        .check(&[], KILLED);
}

#[test]
fn a_deadline_stops_a_task_and_it_has_failed() {
    let limited = |task: &mut Task| task.spec.deadline = Some(Span::from_secs(10));
    let scene = Scene::at(Phase::Running, limited).with("t", 1, running()).after_secs(9);
    let plan = scene.check(&[], STARTED);
    assert_eq!(plan.wake.map(|wake| wake.as_millisecond()), Some(START_MS + 10_000));
    let exceeded = |phase| Some((phase, TaskReason::DeadlineExceeded));
    scene.after_secs(10).check(&["stop 1 15"], exceeded(Phase::Killing));
    let killing = |task: &mut Task| {
        limited(task);
        task.status.as_mut().expect("bound").reason = Some(TaskReason::DeadlineExceeded);
    };
    Scene::at(Phase::Killing, killing)
        .with("t", 1, killed_by(15))
        .check(&[], exceeded(Phase::Failed));
}

#[test]
fn a_deadline_counts_from_the_first_run() {
    let limited = |task: &mut Task| {
        task.spec.deadline = Some(Span::from_secs(10));
        task.spec.restart_policy = RestartPolicy::Always;
        attempts(task, &[finished(1, 1)]);
    };
    Scene::at(Phase::Running, limited)
        .after_secs(11)
        .check(&[], Some((Phase::Failed, TaskReason::DeadlineExceeded)));
}

#[test]
fn a_failed_command_is_run_again_after_its_wait() {
    let scene = Scene::at(Phase::Running, retrying(RestartPolicy::OnFailure)).with("t", 1, exit(1));
    let plan = scene.after_secs(1).check(&[], BACK_OFF);
    assert_eq!(plan.wake.map(|wake| wake.as_millisecond()), Some(START_MS + 2000));
    let scene = Scene::at(Phase::Running, retrying(RestartPolicy::OnFailure)).with("t", 1, exit(1));
    scene.after_secs(2).check(&["create 2"], BACK_OFF);
}

#[test]
fn a_second_attempt_is_started_and_told_as_such() {
    let again = |task: &mut Task| {
        retrying(RestartPolicy::OnFailure)(task);
        attempts(task, &[finished(1, 1)]);
    };
    let scene = Scene::at(Phase::Running, again).with("t", 1, exit(1));
    scene.with("t", 2, State::Created).check(&["start 2"], BACK_OFF);
    let scene = Scene::at(Phase::Running, again).with("t", 1, exit(1));
    let plan = scene.with("t", 2, running()).check(&[], STARTED);
    let status = said(&plan).expect("it is said");
    assert_eq!(status.attempts, [finished(1, 1), unfinished(2)]);
    assert_eq!(status.exit_code, Some(1));
}

#[test]
fn an_attempt_is_numbered_after_all_that_were_ever_told() {
    let again = |task: &mut Task| {
        retrying(RestartPolicy::Always)(task);
        attempts(task, &[finished(6, 1), finished(7, 1)]);
    };
    Scene::at(Phase::Running, again)
        .after_secs(100)
        .check(&["create 8"], BACK_OFF);
}

#[test]
fn retries_run_out() {
    let again = |task: &mut Task| {
        task.spec.restart_policy = RestartPolicy::OnFailure;
        task.spec.max_retries = Some(1);
    };
    let scene = Scene::at(Phase::Running, again)
        .with("t", 1, exit(1))
        .with("t", 2, exit(3));
    let plan = scene.check(&[], Some((Phase::Failed, TaskReason::NonZeroExit)));
    let status = said(&plan).expect("it is said");
    assert_eq!((status.exit_code, status.attempts.len()), (Some(3), 2));
}

#[test]
fn old_containers_go_when_the_status_remembers_them() {
    let again = |task: &mut Task| {
        retrying(RestartPolicy::Always)(task);
        attempts(task, &[finished(1, 1)]);
    };
    let scene = Scene::at(Phase::Running, again)
        .with("t", 1, exit(1))
        .with("t", 2, exit(1));
    scene.with("t", 3, running()).check(&["remove 1"], STARTED);
    let forgot = Scene::at(Phase::Running, retrying(RestartPolicy::Always));
    let forgot = forgot
        .with("t", 1, exit(1))
        .with("t", 2, exit(1))
        .with("t", 3, running());
    forgot.check(&[], STARTED);
}

#[test]
fn an_ended_task_keeps_its_last_containers_until_it_is_deleted() {
    let scene = Scene::at(Phase::Failed, nothing)
        .with("t", 1, exit(1))
        .with("t", 2, exit(1));
    scene.with("t", 3, exit(1)).check(&["remove 1"], None);
    let scene = Scene::at(Phase::Failed, deleted)
        .with("t", 1, exit(1))
        .with("t", 2, exit(1));
    scene.check(&["remove 1", "remove 2"], None);
}

#[test]
fn a_deleted_task_is_let_go_of_when_nothing_of_it_is_left() {
    let plan = Scene::at(Phase::Killed, deleted).plan();
    assert_eq!(plan.reports.values().collect::<Vec<_>>(), [&Report::Release]);
    let plan = Scene::at(Phase::Killed, deleted).with("t", 1, exit(1)).plan();
    assert!(plan.reports.is_empty());
    let foreign = |task: &mut Task| {
        deleted(task);
        task.metadata.finalizers = Some(vec!["somebody/else".to_owned()]);
    };
    assert!(Scene::at(Phase::Killed, foreign).plan().reports.is_empty());
}

#[test]
fn a_task_that_was_given_up_is_stopped_but_not_spoken_of() {
    Scene::at(Phase::Gone, nothing)
        .with("t", 1, running())
        .check(&["stop 1 15"], None);
    Scene::at(Phase::Gone, nothing)
        .with("t", 1, State::Created)
        .check(&["stop 1 15"], None);
}

#[test]
fn a_container_without_a_task_is_removed_only_when_that_is_proven() {
    let mut scene = Scene::new().with("gone", 1, running()).with("gone", 2, exit(0));
    scene.check(&[], None);
    scene.tell(|scene| {
        scene.orphans.insert("uid-gone".to_owned());
    });
    scene.check(&["stop 1 15", "remove 2"], None);
}

#[test]
fn containers_of_others_are_left_alone() {
    let mut scene = Scene::new().with("x", 1, exit(0));
    scene.containers[0].labels = Labels::default();
    scene.orphans.insert("uid-x".to_owned());
    let plan = scene.check(&[], None);
    assert_eq!(plan.problems.len(), 1);
}

#[test]
fn a_task_that_is_being_worked_on_waits() {
    let mut scene = Scene::of(nothing);
    scene.busy.insert("uid-t".to_owned());
    scene.check(&[], None);
}

#[test]
fn a_task_of_another_agent_is_left_alone() {
    let other = |task: &mut Task| task.status.as_mut().expect("bound").agent = Some("a2".to_owned());
    Scene::of(other).check(&[], None);
}

fn fail(scene: &mut Scene, error: &Error) {
    let plan = scene.plan();
    let now = Timestamp::from_millisecond(scene.now_ms).expect("in range");
    let action = plan.actions["uid-t"].first().expect("something is done");
    scene.memory.acted(action, &Err(error.clone()), now);
}

#[test]
fn what_can_never_be_run_is_an_error_at_once() {
    let no_command = |task: &mut Task| task.spec.command.clear();
    Scene::of(no_command).check(&[], Some((Phase::Error, TaskReason::LaunchFailed)));
    let mut scene = Scene::at(Phase::Starting, nothing);
    fail(&mut scene, &Error::Invalid("no such user".to_owned()));
    let plan = scene.check(&[], Some((Phase::Error, TaskReason::LaunchFailed)));
    assert!(said(&plan).expect("it is said").message.contains("no such user"));
}

#[test]
fn an_image_that_is_not_here_is_told_apart() {
    let mut scene = Scene::at(Phase::Starting, |task| task.spec.image = Some("a:1".to_owned()));
    fail(&mut scene, &Error::ImageNotFound("import it".to_owned()));
    let plan = scene.check(&[], Some((Phase::Error, TaskReason::ImageNotFound)));
    assert_eq!(said(&plan).expect("it is said").message, "import it");
}

const REMOTE: &str = "registry.example/app:1";
const PULLING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::PullingImage));

fn remote() -> PullKey {
    PullKey {
        image: REMOTE.to_owned(),
        whose: String::new(),
    }
}

/// A task whose image is not here, on an agent that can fetch it; this is known of it.
fn fetching(known: Option<Pull>) -> Scene {
    let mut scene = Scene::at(Phase::Starting, |task| task.spec.image = Some(REMOTE.to_owned()));
    fail(&mut scene, &Error::ImageNotFound("import it".to_owned()));
    scene.pulls = Some(known.into_iter().map(|pull| (remote(), pull)).collect());
    scene
}

fn failed_pull(scene_ms: i64, error: PullError) -> Pull {
    let at = |ms| Timestamp::from_millisecond(ms).expect("in range");
    Pull::Failed(FailedPull {
        error,
        count: 3,
        since: at(scene_ms),
        retry_at: at(scene_ms + 5000),
    })
}

fn message(plan: &AgentPlan) -> &str {
    &said(plan).expect("it is said").message
}

#[test]
fn an_image_of_a_registry_is_fetched_and_said_how_far_it_is() {
    let wanted = |keys| {
        let (ids, anew) = (BTreeSet::from([id("t", 1)]), false);
        BTreeMap::from([(remote(), Want { ids, keys, anew })])
    };
    let plan = fetching(None).check(&[], PULLING);
    assert_eq!(
        (&plan.images, message(&plan)),
        (&wanted(Some(Vec::new())), "registry.example/app:1: asking the registry")
    );
    let comes = Pull::Comes(Seen {
        fetched: 1 << 20,
        total: 4 << 20,
        unpacking: false,
    });
    let mut scene = fetching(Some(comes));
    let plan = scene.check(&[], PULLING);
    assert_eq!(
        (&plan.images, message(&plan)),
        (&wanted(None), "registry.example/app:1: 1.0 of 4.0 MiB are here")
    );
    let soon = scene.now_ms + PULL_TOLD_EVERY.as_millis() as i64;
    assert_eq!(plan.wake.map(|wake| wake.as_millisecond()), Some(soon));
    // Here: the container is made.
    scene.memory.image_is_here(REMOTE, BTreeSet::new());
    scene.pulls = Some(BTreeMap::new());
    let plan = scene.check(&["create 1"], PREPARING);
    assert!(plan.images.is_empty());
}

#[test]
fn an_image_that_nobody_waits_for_is_not_wanted() {
    let mut scene = Scene::at(Phase::Starting, |task| {
        task.spec.image = Some(REMOTE.to_owned());
        killed(task);
    });
    scene.pulls = Some(BTreeMap::new());
    let plan = scene.check(&[], KILLED);
    assert!(plan.images.is_empty());
}

#[test]
fn a_registry_that_fails_is_asked_again_for_a_while_then_the_task_is_given_back() {
    let busy = |ms| {
        let (message, after) = ("429 Too Many Requests".to_owned(), None);
        failed_pull(ms, PullError::Later { message, after })
    };
    let now = fetching(None).now_ms;
    let plan = fetching(Some(busy(now))).check(&[], PULLING);
    assert_eq!(
        message(&plan),
        "registry.example/app:1: trying again: 429 Too Many Requests"
    );
    assert_eq!(plan.images.len(), 1);
    assert_eq!(plan.wake.map(|wake| wake.as_millisecond()), Some(now + 5000));
    let long_ago = now - PULL_PATIENCE.as_millis() as i64;
    let plan = fetching(Some(busy(long_ago))).check(&[], Some((Phase::Dropped, TaskReason::ImagePullFailed)));
    assert!(message(&plan).contains("3 times: 429 Too Many Requests"));
}

#[test]
fn an_image_that_will_never_come_is_an_error_and_what_is_known_of_it_is_kept_until_that_was_said() {
    for (error, reason) in [
        (PullError::NotFound("404".to_owned()), TaskReason::ImageNotFound),
        (PullError::Refused("401".to_owned()), TaskReason::ImagePullFailed),
        (PullError::Damaged("digest".to_owned()), TaskReason::ImagePullFailed),
    ] {
        let words = error.to_string();
        let scene = fetching(None);
        let plan = fetching(Some(failed_pull(scene.now_ms, error))).check(&[], Some((Phase::Error, reason)));
        assert_eq!(
            message(&plan),
            format!("the image {REMOTE} could not be fetched: {words}")
        );
        assert_eq!(plan.images.len(), 1);
    }
}

#[test]
fn a_name_without_a_registry_is_not_completed_with_one() {
    let mut scene = Scene::at(Phase::Starting, |task| task.spec.image = Some("app:1".to_owned()));
    fail(&mut scene, &Error::ImageNotFound("import it".to_owned()));
    scene.pulls = Some(BTreeMap::new());
    let plan = scene.check(&[], Some((Phase::Error, TaskReason::ImageNotFound)));
    assert!(plan.images.is_empty());
    assert!(message(&plan).starts_with("import it; or write which registry has it"));
}

#[test]
fn a_later_attempt_waits_for_its_image_too() {
    let mut scene = Scene::at(Phase::Running, |task| {
        task.spec.image = Some(REMOTE.to_owned());
        task.spec.restart_policy = RestartPolicy::Always;
    })
    .with("t", 1, exit(1))
    .after_secs(3600);
    fail(&mut scene, &Error::ImageNotFound("import it".to_owned()));
    scene.pulls = Some(BTreeMap::new());
    let plan = scene.check(&[], BACK_OFF);
    assert_eq!(plan.images.len(), 1);
    assert!(message(&plan).starts_with("attempt 2 waits for its image"));
    let gone = failed_pull(scene.now_ms, PullError::NotFound("404".to_owned()));
    scene.pulls = Some(BTreeMap::from([(remote(), gone)]));
    let plan = scene.check(&[], Some((Phase::Failed, TaskReason::ImageNotFound)));
    assert!(message(&plan).contains("attempt 2 could not be started") && message(&plan).contains("404"));
}

#[test]
fn a_failing_runtime_is_tried_again_for_a_while_then_the_task_is_given_back() {
    let full = Error::System {
        context: "mkdir".to_owned(),
        message: "no space left on device".to_owned(),
    };
    let mut scene = Scene::at(Phase::Starting, nothing);
    fail(&mut scene, &full);
    let plan = scene.check(&[], PREPARING);
    assert!(said(&plan).expect("it is said").message.contains("no space"));
    let retry = RETRY_FIRST.as_millis() as i64;
    assert_eq!(plan.wake.map(|wake| wake.as_millisecond()), Some(scene.now_ms + retry));
    scene.now_ms += retry;
    fail(&mut scene, &full);
    scene.now_ms += START_PATIENCE.as_millis() as i64;
    scene.check(&[], Some((Phase::Dropped, TaskReason::NotStarted)));
}

#[test]
fn a_command_that_cannot_be_started_is_stopped_in_the_end() {
    let mut scene = Scene::at(Phase::Starting, nothing).with("t", 1, State::Created);
    let error = Error::System {
        context: "start".to_owned(),
        message: "input/output error".to_owned(),
    };
    fail(&mut scene, &error);
    scene.check(&[], PREPARING);
    scene.now_ms += START_PATIENCE.as_millis() as i64;
    scene.check(&["stop 1 15"], PREPARING);
}

fn on_gpu(task: &mut Task) {
    task.status.as_mut().expect("bound").devices = ["GPU-sim-a1-00".to_owned()].into();
}

#[test]
fn a_task_waits_while_another_container_holds_its_device() {
    let held = Scene::of(on_gpu).with("old", 1, running()).holding("GPU-sim-a1-00");
    let plan = held.check(&[], PREPARING);
    assert!(said(&plan).expect("it is said").message.contains("GPU-sim-a1-00"));
    let prepared = Scene::at(Phase::Starting, on_gpu)
        .with("old", 1, running())
        .holding("GPU-sim-a1-00");
    prepared.with("t", 1, State::Created).check(&[], PREPARING);
    let free = Scene::of(on_gpu).with("old", 1, exit(0)).holding("GPU-sim-a1-00");
    free.check(&["create 1"], PREPARING);
}

#[test]
fn a_task_bound_to_a_device_that_is_not_here_is_given_back() {
    let odd = |task: &mut Task| task.status.as_mut().expect("bound").devices = ["GPU-x".to_owned()].into();
    Scene::of(odd).check(&[], Some((Phase::Dropped, TaskReason::NotStarted)));
}

#[test]
fn a_task_whose_gpu_fails_is_stopped_and_says_which_and_why() {
    let broken = |mut scene: Scene| {
        scene.devices = scene.devices.with_fault("GPU-sim-a1-00");
        scene
    };
    let plan = broken(Scene::of(on_gpu)).check(&[], Some((Phase::Dropped, TaskReason::NotStarted)));
    assert!(
        said(&plan)
            .expect("it is said")
            .message
            .contains("GPU GPU-sim-a1-00: simulated")
    );
    let running_on_it = broken(Scene::at(Phase::Running, on_gpu)).with("t", 1, running());
    running_on_it.check(&["stop 1 15"], Some((Phase::Killing, TaskReason::DeviceFault)));
    let signaled = State::Exited(Exit {
        signal: Some(15),
        code: None,
        ..Exit::never_ran(START_MS, "")
    });
    let stopped = broken(Scene::at(Phase::Killing, |task: &mut Task| {
        on_gpu(task);
        task.status.as_mut().expect("bound").reason = Some(TaskReason::DeviceFault);
    }));
    let plan = stopped
        .with("t", 1, signaled)
        .check(&[], Some((Phase::Failed, TaskReason::DeviceFault)));
    assert!(
        said(&plan)
            .expect("it is said")
            .message
            .starts_with("stopped: GPU GPU-sim-a1-00")
    );
    // The other GPU of the machine is no concern of it.
    let other = |task: &mut Task| task.status.as_mut().expect("bound").devices = ["GPU-sim-a1-01".to_owned()].into();
    broken(Scene::of(other)).check(&["create 1"], PREPARING);
}

#[test]
fn an_agent_that_stops_everything_kills_its_tasks() {
    let mut scene = Scene::at(Phase::Running, nothing).with("t", 1, running());
    scene.draining = true;
    scene.check(&["stop 1 15"], KILLING);
    let mut scene = Scene::of(nothing);
    scene.draining = true;
    scene.check(&[], KILLED);
}

#[test]
fn a_stray_older_attempt_is_stopped_before_anything_is_said() {
    let scene = Scene::at(Phase::Running, retrying(RestartPolicy::Always)).with("t", 1, running());
    scene.with("t", 2, exit(0)).check(&["stop 1 15"], None);
}

#[test]
fn with_a_full_disk_nothing_new_is_begun_and_what_runs_is_looked_after() {
    let mut scene = Scene::of(nothing);
    scene.disk = Some("the disk is full");
    let plan = scene.check(&[], PREPARING);
    assert!(said(&plan).expect("it is said").message.contains("the disk is full"));
    let mut scene = Scene::at(Phase::Running, killed).with("t", 1, running());
    scene.disk = Some("the disk is full");
    scene.check(&["stop 1 15"], KILLING);
}

#[test]
fn a_port_that_another_container_holds_is_waited_for() {
    let ports = |task: &mut Task| {
        task.status.as_mut().expect("bound").ports = muster_api::ports::PortSet::range(31_000, 31_001);
    };
    let scene = Scene::of(ports).with("old", 1, running());
    let mut scene = scene.labelled(crate::spec::LABEL_PORTS, "31001-31002");
    let plan = scene.check(&[], PREPARING);
    assert!(said(&plan).expect("it is said").message.contains("port 31001"));
    scene.containers[0].state = exit(0);
    scene.check(&["create 1"], PREPARING);
}

#[test]
fn what_was_made_in_another_boot_and_nobody_saw_end_ended_by_it() {
    let lost = State::Exited(Exit::never_ran(START_MS, "lost"));
    let scene = Scene::at(Phase::Running, nothing).with("t", 1, lost);
    let mut scene = scene.labelled(crate::spec::LABEL_BOOT, "b0");
    scene.check(&[], Some((Phase::Failed, TaskReason::HostRebooted)));
    // What had ended before is told as it was.
    scene.containers[0].state = exit(0);
    scene.check(&[], Some((Phase::Finished, TaskReason::Completed)));
}
