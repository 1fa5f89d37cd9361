//! When the registry of an image is asked, and with what, rule by rule.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use muster_api::task_state::Phase;
use muster_api::v1::{ImagePullPolicy, PullSecret, RestartPolicy, Source, Task, TaskImage, TaskReason};
use muster_runtime::registry::{PullError, Seen as Far};
use muster_runtime::{Error, LABEL_IMAGE, State};

use super::testing::{START_MS, Scene, exit, id, running, said};
use super::{Action, AgentPlan};
use crate::pulls::{FailedPull, Pull, PullKey};
use crate::sources::{Data, Found, Seen};

const IMAGE: &str = "registry.example/app:1";
const PREPARING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::Preparing));
const PULLING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::PullingImage));
const MISSING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::ConfigMissing));
const BACK_OFF: Option<(Phase, TaskReason)> = Some((Phase::Running, TaskReason::BackOff));

fn policy(policy: ImagePullPolicy) -> impl FnOnce(&mut Task) {
    move |task| {
        task.spec.image = Some(IMAGE.to_owned());
        task.spec.image_pull_policy = Some(policy);
    }
}

fn with_secret(task: &mut Task) {
    policy(ImagePullPolicy::IfNotPresent)(task);
    let name = "registry".to_owned();
    task.spec.image_pull_secrets = vec![PullSecret { name }];
}

/// On an agent that fetches images, of which nothing is known.
fn fetching(mut scene: Scene) -> Scene {
    scene.pulls = Some(BTreeMap::new());
    scene
}

fn key(whose: &str) -> PullKey {
    PullKey {
        image: IMAGE.to_owned(),
        whose: whose.to_owned(),
    }
}

/// The image is not here: the container could not be made.
fn without_image(mut scene: Scene) -> Scene {
    let plan = scene.plan();
    let now = Timestamp::from_millisecond(scene.now_ms).expect("in range");
    let action = plan.actions["uid-t"].first().expect("something is done");
    assert!(matches!(action, Action::Create { .. }));
    let error = Error::ImageNotFound("import it".to_owned());
    scene.memory.acted(action, &Err(error), now);
    scene
}

fn seen(found: Found) -> Seen {
    Seen::new(found, Timestamp::from_millisecond(START_MS + 60_000).expect("in range"))
}

fn message(plan: &AgentPlan) -> &str {
    &said(plan).expect("it is said").message
}

#[test]
fn always_asks_the_registry_before_every_run_and_once_for_each() {
    let mut scene = fetching(Scene::at(Phase::Starting, policy(ImagePullPolicy::Always)));
    let plan = scene.check(&[], PULLING);
    let want = &plan.images[&key("")];
    assert_eq!((&want.ids, want.anew), (&BTreeSet::from([id("t", 1)]), true));
    scene.memory.image_is_here(IMAGE, [id("t", 1)].into());
    scene.check(&["create 1"], PREPARING);

    // It has run; the next run asks again, when it is due.
    let again = |scene: Scene| {
        let always = |task: &mut Task| {
            policy(ImagePullPolicy::Always)(task);
            task.spec.restart_policy = RestartPolicy::Always;
        };
        let mut scene = fetching(scene.and(always).with("t", 1, exit(1)));
        scene.tasks.values_mut().for_each(|task| {
            let task = std::sync::Arc::make_mut(task);
            task.status.as_mut().expect("bound").phase = Phase::Running;
        });
        scene
    };
    let early = again(Scene::new()).after_secs(1);
    assert!(early.plan().images.is_empty(), "it waits");
    let mut due = again(Scene::new()).after_secs(3600);
    let plan = due.check(&[], BACK_OFF);
    assert_eq!(plan.images[&key("")].ids, [id("t", 2)].into());
    assert!(message(&plan).starts_with("attempt 2 waits for its image"));
    due.memory.image_is_here(IMAGE, [id("t", 2)].into());
    due.check(&["create 2"], BACK_OFF);
}

#[test]
fn nobody_is_asked_for_a_task_that_could_not_start_anyway_but_what_has_begun_goes_on() {
    let always = || fetching(Scene::at(Phase::Starting, policy(ImagePullPolicy::Always)));
    for hinder in [
        (|scene: &mut Scene| scene.may_start = false) as fn(&mut Scene),
        |scene| scene.disk = Some("the disk is full"),
    ] {
        let mut scene = always();
        hinder(&mut scene);
        assert!(scene.plan().images.is_empty());
        scene.pulls = Some([(key(""), Pull::Comes(Far::default()))].into());
        assert_eq!(scene.plan().images.len(), 1);
    }
}

#[test]
fn an_image_that_was_deleted_after_it_was_asked_for_is_asked_for_again() {
    let mut scene = fetching(Scene::at(Phase::Starting, policy(ImagePullPolicy::Always)));
    scene.memory.image_is_here(IMAGE, [id("t", 1)].into());
    let scene = without_image(scene);
    assert_eq!(scene.check(&[], PULLING).images.len(), 1);
}

#[test]
fn what_is_here_is_enough_unless_always_is_said() {
    for policy in [ImagePullPolicy::IfNotPresent, ImagePullPolicy::Never] {
        let plan = fetching(Scene::at(Phase::Starting, self::policy(policy))).check(&["create 1"], PREPARING);
        assert!(plan.images.is_empty());
    }
    let absent = without_image(fetching(Scene::at(Phase::Starting, policy(ImagePullPolicy::Never))));
    let plan = absent.check(&[], Some((Phase::Error, TaskReason::ImageNotFound)));
    assert!(message(&plan).contains("imagePullPolicy is Never") && plan.images.is_empty());
}

#[test]
fn the_credentials_of_a_task_are_read_when_they_are_needed_and_go_with_its_pull_only() {
    let scene = fetching(Scene::at(Phase::Starting, with_secret));
    assert!(
        scene.check(&["create 1"], PREPARING).sources.is_empty(),
        "the image may be here"
    );
    let scene = without_image(scene);
    let plan = scene.check(&[], PULLING);
    assert_eq!((plan.sources.len(), plan.images.len()), (1, 0));
    assert!(message(&plan).contains("reading its credentials"));

    let secret = || Source::secret("registry");
    let scene = scene.knows(secret(), seen(Found::Absent));
    let plan = scene.check(&[], MISSING);
    assert!(
        message(&plan)
            .contains("the Secret registry, which spec.imagePullSecrets names, is not in the namespace default"),
        "{plan:?}"
    );
    let scene = scene.knows(secret(), seen(Found::Here(Data::new().into())));
    assert!(message(&scene.check(&[], MISSING)).contains("has no key .dockerconfigjson"));

    let data = Data::from([(".dockerconfigjson".to_owned(), b"s3cret".to_vec().into())]);
    let mut scene = scene.knows(secret(), seen(Found::Here(data.into())));
    let plan = scene.check(&[], PULLING);
    let want = &plan.images[&key("default/registry")];
    assert_eq!(want.keys.as_ref().map(Vec::len), Some(1));
    assert!(!format!("{plan:?}").contains("s3cret"), "nothing of them is shown");

    // What comes is not given up because they cannot be read any more.
    scene.pulls = Some([(key("default/registry"), Pull::Comes(Far::default()))].into());
    scene.sources.clear();
    let plan = scene.check(&[], PULLING);
    assert_eq!(plan.images[&key("default/registry")].keys, None);
    assert!(plan.sources.is_empty());
    let failed = FailedPull {
        error: PullError::Refused("401".to_owned()),
        count: 1,
        since: Timestamp::UNIX_EPOCH,
        retry_at: Timestamp::UNIX_EPOCH,
    };
    scene.pulls = Some([(key("default/registry"), Pull::Failed(failed))].into());
    let plan = scene.check(&[], Some((Phase::Error, TaskReason::ImagePullFailed)));
    assert!(message(&plan).contains("401"));
}

#[test]
fn the_digest_that_a_task_runs_from_is_said() {
    let image = policy(ImagePullPolicy::IfNotPresent);
    let scene = Scene::at(Phase::Starting, image).with("t", 1, running());
    let scene = scene.labelled(LABEL_IMAGE, "sha256:0a");
    let plan = scene.check(&[], Some((Phase::Running, TaskReason::Started)));
    let expect = TaskImage {
        reference: IMAGE.to_owned(),
        digest: "sha256:0a".to_owned(),
    };
    assert_eq!(said(&plan).expect("it is said").image, Some(expect));
    let unknown = Scene::at(Phase::Starting, |_| {}).with("t", 1, State::Created);
    assert_eq!(unknown.plan().reports.values().count(), 1);
}
