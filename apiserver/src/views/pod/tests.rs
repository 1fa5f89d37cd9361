use super::*;

fn task() -> Value {
    json!({
        "apiVersion": "muster.dev/v1", "kind": "Task",
        "metadata": {"name": "t", "namespace": "d", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a": "b"}},
        "spec": {
            "framework": "default", "command": ["sh"], "env": [{"name": "A", "value": "1"}],
            "resources": {"cpus": "0.5", "memory": "64Mi", "gpus": 2, "disk": 0}, "restartPolicy": "Always",
            "kill": {"gracePeriod": "5s"}, "user": {"uid": 1000},
        },
        "status": {
            "phase": "Running", "agent": "a1", "startedAt": "2026-01-01T00:00:02Z", "reason": "Started",
            "attempts": [
                {"number": 1, "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:02Z", "signal": 9, "oomKilled": true},
                {"number": 2, "startedAt": "2026-01-01T00:00:02Z"},
            ],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:02Z"}],
        },
    })
}

fn with(phase: &str, reason: &str, attempts: Value) -> Value {
    let mut task = task();
    task["status"]["phase"] = json!(phase);
    task["status"]["reason"] = json!(reason);
    task["status"]["attempts"] = attempts;
    task["status"]["conditions"] =
        json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:02Z"}]);
    task
}

fn cells(task: Value) -> (String, String, String) {
    let pod = of_task(task);
    let text = |cell: Value| cell.as_str().expect("a text").to_owned();
    (
        text(ready_cell(&pod)),
        text(status_cell(&pod)),
        text(restarts_cell(&pod)),
    )
}

#[test]
fn a_running_task_is_a_running_pod_with_its_history() {
    let pod = of_task(task());
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["name"], "t");
    assert_eq!(
        container["resources"]["requests"],
        json!({"cpu": "0.5", "memory": "64Mi", "muster.dev/gpu": "2"})
    );
    assert_eq!(pod["spec"]["nodeName"], "a1");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 5);
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(
        status["state"],
        json!({"running": {"startedAt": "2026-01-01T00:00:02Z"}})
    );
    assert_eq!(status["lastState"]["terminated"]["reason"], "OOMKilled");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(cells(task()), ("1/1".to_owned(), "Running".to_owned(), "1".to_owned()));
}

#[test]
fn what_people_look_for_is_in_the_status_column() {
    let ended = |code: i64| json!([{"number": 1, "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:02Z", "exitCode": code}]);
    for (phase, reason, attempts, shown) in [
        ("Pending", "ExceedsEveryAgent", json!([]), "ExceedsEveryAgent"),
        ("Staging", "OfferAccepted", json!([]), "ContainerCreating"),
        ("Starting", "PullingImage", json!([]), "PullingImage"),
        ("Running", "BackOff", ended(1), "CrashLoopBackOff"),
        ("Finished", "Completed", ended(0), "Completed"),
        ("Failed", "NonZeroExit", ended(3), "Error"),
        ("Dropped", "NotStarted", json!([]), "NotStarted"),
        ("Starting", "ImagePullFailed", json!([]), "ErrImagePull"),
    ] {
        assert_eq!(cells(with(phase, reason, attempts)).1, shown, "{phase} {reason}");
    }
    let mut going = task();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:03Z");
    assert_eq!(cells(going).1, "Terminating");
}

#[test]
fn every_phase_of_a_task_is_one_of_a_pod() {
    use muster_api::task_state::Phase;
    for (name, _) in PHASES {
        assert!(serde_json::from_value::<Phase>(json!(name)).is_ok(), "{name}");
    }
    let of_pending = with("Pending", "AwaitingOffer", json!([]));
    let mut unbound = of_pending;
    unbound["status"]["agent"] = Value::Null;
    let pod = of_task(unbound);
    assert_eq!(pod["status"]["conditions"][0]["reason"], "Unschedulable");
    assert_eq!(pod["status"].get("containerStatuses"), None);
}

#[test]
fn what_kubectl_run_sends_becomes_a_task_and_comes_back() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "creationTimestamp": null, "labels": {"run": "web"}},
        "spec": {
            "containers": [{"name": "main", "image": "busybox", "args": ["sleep", "60"], "resources": {
                "limits": {"nvidia.com/gpu": 1, "cpu": "2"}, "requests": {"memory": "1Gi"}}}],
            "restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "nodeSelector": {"zone": "a"}, "securityContext": {},
        },
        "status": {},
    });
    let task = to_task(&pod).expect("it can be said");
    assert_eq!(
        task["spec"]["resources"],
        json!({"memory": "1Gi", "cpus": "2", "gpus": 1})
    );
    assert_eq!(task["spec"]["limits"], json!({"cpus": "2"}));
    assert_eq!(task["spec"]["restartPolicy"], "Never");
    let shown = of_task(task);
    for path in [
        "/spec/containers/0/name",
        "/spec/containers/0/args",
        "/spec/nodeSelector",
        "/spec/restartPolicy",
        "/metadata/labels",
    ] {
        assert_eq!(shown.pointer(path), pod.pointer(path), "{path}");
    }
    assert_eq!(
        shown["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
        "1"
    );
    assert_eq!(shown["metadata"].get("annotations"), None);
}

#[test]
fn what_is_said_and_known_of_an_image_is_shown_as_of_a_pod() {
    let shown = |image: &str, said: Value, found: Value| {
        let mut task = task();
        task["spec"]["image"] = json!(image);
        task["spec"]["imagePullPolicy"] = said;
        task["status"]["image"] = found;
        let pod = of_task(task);
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).expect("a text").to_owned();
        (
            text("/spec/containers/0/imagePullPolicy"),
            text("/status/containerStatuses/0/imageID"),
        )
    };
    let pair = |policy: &str, id: &str| (policy.to_owned(), id.to_owned());
    let found = |image: &str| json!({"ref": image, "digest": "sha256:0a"});
    assert_eq!(
        shown("r.io/a", Value::Null, found("r.io/a")),
        pair("Always", "r.io/a@sha256:0a")
    );
    assert_eq!(shown("r.io/a:1", Value::Null, Value::Null), pair("IfNotPresent", ""));
    assert_eq!(
        shown("r:5000/a:1", json!("Never"), found("r:5000/a:1")),
        pair("Never", "r:5000/a@sha256:0a")
    );
    let pod = json!({"metadata": {"name": "x"}, "spec": {
        "containers": [{"name": "x", "image": "r.io/i", "imagePullPolicy": "Never"}], "imagePullSecrets": [{"name": "s"}],
    }});
    let task = to_task(&pod).expect("it can be said");
    assert_eq!(
        (&task["spec"]["imagePullPolicy"], &task["spec"]["imagePullSecrets"]),
        (&json!("Never"), &json!([{"name": "s"}]))
    );
    assert_eq!(of_task(task)["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
}

#[test]
fn a_pod_that_asks_for_nothing_is_a_task_that_asks_for_a_little() {
    let pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "i"}]}});
    let task = to_task(&pod).expect("it can be said");
    assert_eq!(task["spec"]["resources"], json!({"cpus": "0.1", "memory": "64Mi"}));
}

#[test]
fn what_a_task_cannot_say_is_refused_by_name() {
    let pod = |change: &dyn Fn(&mut Value)| {
        let mut pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "i"}]}});
        change(&mut pod);
        let refused = to_task(&pod).expect_err("it is refused");
        refused.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);
    let cases: [Case<'_>; 7] = [
        (
            &|pod| pod["spec"]["initContainers"] = json!([{"name": "i"}]),
            "spec.initContainers",
        ),
        (&|pod| pod["spec"]["volumes"] = json!([{"name": "v"}]), "spec.volumes"),
        (
            &|pod| pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {}}),
            "spec.containers[0].livenessProbe",
        ),
        (
            &|pod| pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]),
            "spec.containers[0].ports",
        ),
        (
            &|pod| pod["spec"]["containers"] = json!([{"name": "a"}, {"name": "b"}]),
            "spec.containers",
        ),
        (
            &|pod| pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true}),
            "spec.containers[0].securityContext.privileged",
        ),
        (
            &|pod| pod["spec"]["containers"][0]["resources"] = json!({"limits": {"example.com/x": 1}}),
            "spec.containers[0].resources.limits[example.com/x]",
        ),
    ];
    for (change, field) in cases {
        assert_eq!(pod(change), [field]);
    }
}

#[test]
fn what_clients_write_where_nothing_was_said_is_nothing() {
    let container = json!({
        "name": "p", "image": "docker.io/library/busybox:1", "resources": {}, "livenessProbe": null, "stdin": false, "stdinOnce": false, "tty": false,
    });
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "generation": 0}, "status": {},
        "spec": {"containers": [container], "hostNetwork": false, "hostPID": false, "hostIPC": false},
    });
    assert!(to_task(&pod).is_ok());
    pod["spec"]["hostPID"] = json!(true);
    assert_eq!(to_task(&pod).expect_err("refused")[0].field, "spec.hostPID");
}
