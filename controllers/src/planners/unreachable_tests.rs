use super::super::testing::*;
use super::*;

fn plan_at(cluster: Cluster, seconds: i64) -> Plan {
    Unreachable.plan(&(), &cluster.view(), &Context::at(at(seconds)))
}

/// One agent that was lost when the test began, and a task on it of this policy; two other agents.
fn cluster(unreachable: Value) -> Cluster {
    Cluster::default()
        .agent("a1", 4)
        .agent("a2", 4)
        .agent("a3", 4)
        .task("t1", |task| {
            task.cpus(1)
                .running("a1")
                .unreachable()
                .spec("unreachable", unreachable)
        })
        .lost("a1", 0)
}

fn replace_after() -> Value {
    json!({ "policy": "ReplaceAfter", "after": "1m" })
}

fn self_fence() -> Value {
    json!({ "policy": "SelfFence", "after": "100s" })
}

/// The status writes of a plan, as (name, status).
fn statuses(plan: &Plan) -> Vec<(&str, &Value)> {
    let status = |write: &'_ Write| matches!(write.action, Action::Patch { status: true, .. });
    let writes = plan.writes.iter().filter(|write| status(write));
    writes
        .filter_map(|write| match &write.action {
            Action::Patch { id, body, .. } => Some((&*id.name, &body["status"])),
            _ => None,
        })
        .collect()
}

fn phase_of(plan: &Plan) -> Option<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = statuses(plan)
        .into_iter()
        .filter(|(_, status)| !status["phase"].is_null());
    all.next()
        .map(|(_, status)| (text(&status["phase"]), text(&status["reason"])))
}

fn created(plan: &Plan) -> Vec<&Value> {
    let created = plan.writes.iter().filter_map(|write| match &write.action {
        Action::Create { object, .. } => Some(object),
        _ => None,
    });
    created.collect()
}

fn message(plan: &Plan) -> String {
    let (_, status) = statuses(plan)[0];
    status["reachabilityMessage"]
        .as_str()
        .expect("it says something")
        .to_owned()
}

#[test]
fn by_default_a_task_waits_for_ever_and_says_what_can_be_done() {
    let plan = plan_at(cluster(Value::Null), 1_000_000);
    assert_eq!((plan.writes.len(), plan.wake), (1, None), "{plan:?}");
    let text = message(&plan);
    for part in ["a1", "2026-01-01T00:00:00Z", "mctl gone a1 --powered-off"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_is_said_already_is_not_said_again() {
    let text = message(&plan_at(cluster(Value::Null), 5));
    let told = cluster(Value::Null).task("t1", |task| {
        let task = task.cpus(1).running("a1").unreachable();
        task.status("reachabilityMessage", json!(text))
    });
    assert_eq!(plan_at(told, 500), Plan::default());
}

#[test]
fn a_task_is_replaced_when_its_time_has_come_and_not_before() {
    let before = plan_at(cluster(replace_after()), 60);
    assert_eq!((created(&before).len(), before.wake), (0, Some(at(61))));
    assert!(message(&before).contains("replaced at 2026-01-01T00:01:01Z"));
    let due = plan_at(cluster(replace_after()), 61);
    let [task] = created(&due)[..] else { panic!("{due:?}") };
    assert_eq!(task["metadata"]["name"], "t1-uidt1");
    assert_eq!(task["metadata"]["annotations"]["muster.dev/replaces"], "uid-t1");
    assert_eq!(task["spec"]["resources"]["cpus"], "1");
    assert_eq!(
        due.writes.len(),
        1,
        "the original says so only when the other one is there"
    );
    assert_eq!(plan_at(cluster(replace_after()), 61), due, "the same again");
}

#[test]
fn a_replaced_task_names_its_replacement_and_is_not_replaced_again() {
    let made = cluster(replace_after()).task("t1-uidt1", |task| task.cpus(1).replaces("uid-t1"));
    let plan = plan_at(made, 61);
    assert_eq!(statuses(&plan), [("t1", &json!({ "replacedBy": "t1-uidt1" }))]);
    let brief = cluster(replace_after()).task("t1-uidt1", |task| task.finished("a2", 60).replaces("uid-t1"));
    assert_eq!(plan_at(brief, 61), plan, "it may have ended before that");
    // Somebody has deleted the replacement.
    let again = cluster(replace_after()).task("t1", |task| {
        let task = task
            .cpus(1)
            .running("a1")
            .unreachable()
            .spec("unreachable", replace_after());
        task.status("replacedBy", json!("t1-uidt1"))
    });
    assert_eq!(created(&plan_at(again, 10_000)).len(), 0);
}

#[test]
fn anothers_task_of_the_same_name_is_no_replacement() {
    let plan = plan_at(cluster(replace_after()).task("t1-uidt1", |task| task.cpus(1)), 61);
    assert_eq!((created(&plan).len(), plan.report.len()), (0, 1));
    assert!(message(&plan).contains("another one has the name t1-uidt1"));
}

#[test]
fn what_was_told_to_stop_or_belongs_to_another_framework_is_not_replaced() {
    let stopped = cluster(replace_after()).task("t1", |task| {
        let task = task.cpus(1).running("a1").unreachable().killed();
        task.spec("unreachable", replace_after())
    });
    assert_eq!(created(&plan_at(stopped, 1000)).len(), 0);
    let external = cluster(replace_after()).external("default");
    assert_eq!(created(&plan_at(external, 1000)).len(), 0);
}

#[test]
fn a_task_that_fences_itself_is_gone_when_it_must_have_ended() {
    // 100 s, a tenth, 5 s to end and 2 s to spare, and the second that the time of the loss is rounded by.
    let before = plan_at(cluster(self_fence()), 117);
    assert_eq!((phase_of(&before), before.wake), (None, Some(at(118))));
    let due = plan_at(cluster(self_fence()), 118);
    assert_eq!(phase_of(&due), Some(("Gone".to_owned(), "SelfFenced".to_owned())));
}

#[test]
fn an_operators_word_ends_what_runs_there_if_it_is_about_this_loss() {
    for policy in [Value::Null, replace_after(), self_fence()] {
        let gone = plan_at(cluster(policy.clone()).said("a1", "poweredOffAt", 0), 1);
        assert_eq!(phase_of(&gone), Some(("Gone".to_owned(), "AgentPoweredOff".to_owned())));
        let other = plan_at(cluster(policy).said("a1", "poweredOffAt", -1), 1);
        assert_eq!(phase_of(&other), None);
    }
}

#[test]
fn an_agent_whose_lease_is_back_is_left_to_speak_for_itself() {
    let back = cluster(self_fence()).with(Kind::Lease, "a1", json!({ "spec": { "holderIdentity": "a1" } }));
    assert_eq!(plan_at(back.said("a1", "poweredOffAt", 9), 10_000), Plan::default());
}

/// `cluster`, but the other two agents were lost, too.
fn many_lost(unreachable: Value) -> Cluster {
    cluster(unreachable).lost("a2", 3).lost("a3", 5)
}

#[test]
fn while_the_brake_is_on_nobody_is_replaced_or_given_up() {
    for policy in [replace_after(), self_fence()] {
        let plan = plan_at(many_lost(policy), 10_000);
        assert_eq!((phase_of(&plan), created(&plan).len()), (None, 0));
        let told: Vec<&str> = statuses(&plan).into_iter().map(|(name, _)| name).collect();
        assert_eq!(told, ["a1", "t1", "a2", "a3"]);
        let (_, agent) = statuses(&plan)[0];
        assert_eq!(agent["conditions"][0]["type"], "ReplacementPaused");
        assert!(
            agent["conditions"][0]["message"]
                .as_str()
                .expect("text")
                .contains("3 of 3 agents")
        );
        assert_eq!(plan.writes[0].then[0].reason, "ReplacementPaused");
    }
}

#[test]
fn an_operator_releases_the_brake_for_agents_that_were_looked_at() {
    let released = many_lost(replace_after()).said("a1", "brakeReleasedAt", 9);
    assert_eq!(
        created(&plan_at(released, 61)).len(),
        1,
        "for that one, though the others still brake"
    );
    let off = many_lost(Value::Null).said("a1", "poweredOffAt", 9);
    assert_eq!(
        phase_of(&plan_at(off, 10)),
        Some(("Gone".to_owned(), "AgentPoweredOff".to_owned()))
    );
}

#[test]
fn the_condition_goes_when_the_brake_does() {
    let paused = json!({ "type": "ReplacementPaused", "status": "True", "reason": "LostTogether", "message": "",
        "lastTransitionTime": now().to_string() });
    let mut cluster = cluster(Value::Null);
    let capacity = json!({ "cpus": 4, "memory": "4Gi", "disk": "0", "gpus": 0, "ports": [] });
    let status = json!({ "capacity": capacity, "reachability": "Reachable", "conditions": [paused] });
    cluster = cluster.with(Kind::Agent, "a2", json!({ "spec": {}, "status": status }));
    let plan = plan_at(cluster, 5);
    assert!(
        statuses(&plan).contains(&("a2", &json!({ "conditions": [] }))),
        "{plan:?}"
    );
}

#[test]
fn a_jump_of_the_wall_clock_or_a_new_leader_shortens_no_wait() {
    let view = cluster(self_fence()).view();
    let hour = SignedDuration::from_hours(1);
    let jumped = Context {
        now: at(30) + hour,
        ..Context::at(at(30))
    };
    let plan = Unreachable.plan(&(), &view, &jumped);
    assert_eq!((phase_of(&plan), plan.wake), (None, Some(at(118) + hour)));
    // Its clock says that an hour has passed, but it has only just begun to look.
    let new = Context {
        term: at(30) + hour,
        ..Context::at(at(31) + hour)
    };
    let plan = Unreachable.plan(&(), &view, &new);
    assert_eq!((phase_of(&plan), plan.wake), (None, Some(at(30 + 118) + hour)));
    // One whose clock is behind does not wait for the hour.
    let behind = |seconds: i64| Context {
        term: at(30) - hour,
        ..Context::at(at(seconds) - hour)
    };
    assert_eq!(phase_of(&Unreachable.plan(&(), &view, &behind(30 + 117))), None);
    assert!(phase_of(&Unreachable.plan(&(), &view, &behind(30 + 118))).is_some());
}

#[test]
fn names_of_replacements_are_labels() {
    for name in ["a", &"a".repeat(63), &format!("{}-b", "a".repeat(53))] {
        let replacement = replacement_name(name, "01234567-89ab-cdef");
        assert_eq!(names::dns_label_problem(&replacement), None, "{replacement}");
        assert!(replacement.ends_with("-01234567"), "{replacement}");
    }
}
