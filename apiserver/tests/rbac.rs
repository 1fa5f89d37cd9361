//! Roles, bindings and who may do what, through the router.

mod common;

use common::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Client, Server, TASKS, config_map, names, task};
use muster_api::env::Env;
use muster_apiserver::auth::User;
use muster_apiserver::kinds;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

async fn namespace(server: &Server, name: &str) {
    let namespace = json!({"metadata": {"name": name}});
    server.admin().post("/api/v1/namespaces", &namespace).await.expect(201);
}

/// Gives a user a role of a namespace that has these rules.
async fn allow(server: &Server, namespace: &str, user: &str, rules: &[Value]) {
    let role = json!({"metadata": {"name": user}, "rules": rules});
    let roles = format!("{RBAC}/namespaces/{namespace}/roles");
    server.admin().post(&roles, &role).await.expect(201);
    bind(&server.admin(), namespace, user, "Role", user).await.expect(201);
}

async fn bind(by: &Client<'_>, namespace: &str, user: &str, kind: &str, role: &str) -> common::Answer {
    let binding = json!({
        "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let path = match namespace {
        "" => CLUSTER_ROLE_BINDINGS.to_owned(),
        namespace => format!("{RBAC}/namespaces/{namespace}/rolebindings"),
    };
    by.post(&path, &binding).await
}

#[tokio::test(start_paused = true)]
async fn nobody_may_do_anything_but_look_around_until_a_role_says_so() {
    let server = Server::new().await;
    let al = server.user_named("al");
    for path in [
        "/apis",
        "/api/v1",
        "/apis/muster.dev/v1",
        "/openapi/v3",
        "/version",
        "/muster/v1/endpoints",
    ] {
        al.get(path).await.expect(200);
    }
    let refused = al.get(TASKS).await.expect(403);
    assert_eq!(
        refused.message(),
        "tasks.muster.dev is forbidden: User \"al\" cannot list resource \"tasks\" in API group \"muster.dev\" in the namespace \
         \"default\""
    );
    for path in [
        "/api/v1/namespaces",
        "/apis/muster.dev/v1/agents",
        "/metrics",
        "/muster/v1/plan",
        "/muster/v1/tokens",
        "/muster/v1/why/default/t",
        "/muster/v1/watch?resources=tasks.muster.dev",
        CLUSTER_ROLES,
    ] {
        al.get(path).await.expect(403);
    }
    al.post(TASKS, &task("t")).await.expect(403);
    bind(&server.admin(), "default", "al", "ClusterRole", "edit")
        .await
        .expect(201);
    al.post(TASKS, &task("t")).await.expect(201);
    al.get("/api/v1/namespaces/default").await.expect(200);
    al.get("/api/v1/namespaces").await.expect(403);
    al.get("/api/v1/namespaces/default/secrets").await.expect(200);
    al.merge(&format!("{TASKS}/t/status"), &json!({"status": {"phase": "Finished"}}))
        .await
        .expect(403);
    let binding = format!("{RBAC}/namespaces/default/rolebindings/al-edit");
    server.admin().delete(&binding).await.expect(200);
    al.get(TASKS).await.expect(403);
}

/// The answer of every route to somebody whom nobody has given anything; `None`: there is no such route.
async fn knock(client: &Client<'_>, method: &str, path: &str) -> Option<u16> {
    let answer = client.send(method, path, "{}").await;
    let code = answer.code.as_u16();
    (code != 405).then_some(code)
}

#[tokio::test(start_paused = true)]
async fn every_route_is_behind_a_decision() {
    let server = Server::new().await;
    let admin = server.admin();
    for name in ["system:basic-user", "system:discovery", "system:public-info-viewer"] {
        admin
            .delete(&format!("{CLUSTER_ROLE_BINDINGS}/{name}"))
            .await
            .expect(200);
    }
    let (al, nobody) = (server.user_named("al"), server.anonymous());
    let mut paths = vec![
        "/",
        "/api",
        "/apis",
        "/apis/muster.dev",
        "/apis/muster.dev/v1",
        "/openapi/v2",
        "/openapi/v3",
        "/metrics",
        "/muster/v1/plan",
        "/muster/v1/watch?resources=tasks.muster.dev",
        "/muster/v1/why/default/t",
        "/muster/v1/endpoints",
        "/muster/v1/tokens",
        "/muster/v1/tokens/x",
        "/muster/v1/renew",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    for kind in kinds::resources() {
        let group = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let within = if kind.namespaced { "/namespaces/default" } else { "" };
        let all = format!("{group}{within}/{}", kind.plural);
        let subresources = kind.subresources.iter().map(|sub| format!("{all}/x/{}", sub.name));
        paths.extend(subresources);
        if kind.namespaced && !kind.is_review() {
            paths.push(format!("{group}/{}", kind.plural));
        }
        paths.extend([format!("{all}/x"), format!("{all}?watch=true"), all]);
    }
    let mut routes = 0;
    for path in &paths {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            if let Some(code) = knock(&al, method, path).await {
                routes += 1;
                // What would have to name its namespace or be of another type is found out before anybody is asked.
                let malformed = code == 400 || code == 415;
                assert!(
                    code == 403 || code == 404 || malformed && method != "GET",
                    "{method} {path}: {code}"
                );
                let code = knock(&nobody, method, path).await;
                assert!(code.is_some_and(|code| code >= 400), "{method} {path}: {code:?}");
            }
        }
    }
    assert!(routes > 150, "only {routes} routes were found");
    for path in ["/version", "/livez", "/readyz", "/healthz"] {
        assert_eq!(knock(&nobody, "GET", path).await, Some(200), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_sees_one_namespace_sees_no_other_by_any_way() {
    let server = Server::new().await;
    for name in ["mine", "theirs"] {
        namespace(&server, name).await;
        let tasks = format!("/apis/muster.dev/v1/namespaces/{name}/tasks");
        server.admin().post(&tasks, &task("t")).await.expect(201);
    }
    bind(&server.admin(), "mine", "al", "ClusterRole", "view")
        .await
        .expect(201);
    let al = server.user_named("al");
    let mine = "/apis/muster.dev/v1/namespaces/mine/tasks";
    assert_eq!(names(&al.get(mine).await.expect(200).json), ["t"]);
    assert_eq!(
        al.get("/muster/v1/why/mine/t").await.code,
        503,
        "nothing was reported yet"
    );
    let own = "/muster/v1/watch?resources=tasks.muster.dev&namespace=mine";
    let mut watch = al.watch(own).await;
    let snapshot = watch.next().await.unwrap();
    assert_eq!(snapshot["changes"].as_array().unwrap().len(), 1, "{snapshot}");
    assert_eq!(snapshot["changes"][0]["object"]["metadata"]["namespace"], "mine");
    let theirs = "/apis/muster.dev/v1/namespaces/theirs/tasks";
    let everywhere = "/apis/muster.dev/v1/tasks";
    for path in [
        theirs,
        everywhere,
        &format!("{theirs}/t"),
        &format!("{theirs}/t/log"),
        &format!("{theirs}?watch=true"),
        &format!("{everywhere}?watch=true"),
        &format!("{everywhere}?fieldSelector=metadata.namespace%3Dmine"),
        &format!("{everywhere}?fieldSelector=metadata.name%3Dt"),
        "/muster/v1/watch?resources=tasks.muster.dev",
        "/muster/v1/watch?resources=tasks.muster.dev&namespace=theirs",
        "/muster/v1/watch?resources=agents.muster.dev&others=true",
        "/muster/v1/why/theirs/t",
        "/muster/v1/plan",
    ] {
        al.get(path).await.expect(403);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        al.clone().with("accept", table).get(path).await.expect(403);
    }
    server.admin().post(theirs, &task("u")).await.expect(201);
    server.admin().post(mine, &task("u")).await.expect(201);
    for line in watch.ready().await {
        for change in line["changes"].as_array().into_iter().flatten() {
            assert_eq!(change["object"]["metadata"]["namespace"], "mine", "{line}");
        }
    }
    al.get("/muster/v1/watch?resources=agents.muster.dev&namespace=mine")
        .await
        .expect(400);
}

#[tokio::test(start_paused = true)]
async fn reaching_ports_is_a_right_of_its_own_and_more_than_reading() {
    let server = Server::new().await;
    server.admin().post(TASKS, &task("t")).await.expect(201);
    let both = ["create", "get"];
    allow(
        &server,
        "default",
        "al",
        &[rule("muster.dev", &["tasks/portforward"], &both)],
    )
    .await;
    let reads = rule("muster.dev", &["tasks/portforward"], &["get"]);
    allow(
        &server,
        "default",
        "bo",
        &[rule("", &["pods/portforward"], &both), reads],
    )
    .await;
    let (al, bo) = (server.user_named("al"), server.user_named("bo"));
    let of_task = format!("{TASKS}/t/portforward?ports=80");
    let of_pod = "/api/v1/namespaces/default/pods/t/portforward?ports=80";
    // Who is let in is told next that this is no WebSocket.
    let told = al.get(&of_task).await.expect(400);
    assert!(told.message().contains("`mctl port-forward`"), "{}", told.message());
    bo.get(of_pod).await.expect(400);
    al.get(of_pod).await.expect(403);
    bo.get(&of_task).await.expect(403);
    al.get(&format!("{TASKS}/t/exec?command=x")).await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn a_rule_about_a_name_is_about_that_object_alone() {
    let server = Server::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["one", "two"] {
        server.admin().post(maps, &config_map(name, "1")).await.expect(201);
    }
    let mut named = rule("", &["configmaps"], &["get", "list", "watch", "update", "create"]);
    named["resourceNames"] = json!(["one"]);
    allow(&server, "default", "al", &[named]).await;
    let al = server.user_named("al");
    al.get(&format!("{maps}/one")).await.expect(200);
    al.get(&format!("{maps}/two")).await.expect(403);
    al.get(maps).await.expect(403);
    let one = format!("{maps}?fieldSelector=metadata.name%3Done");
    assert_eq!(names(&al.get(&one).await.expect(200).json), ["one"]);
    al.get(&format!("{maps}?fieldSelector=metadata.name%3Dtwo"))
        .await
        .expect(403);
    al.get(&format!("{maps}?fieldSelector=metadata.name!%3Done"))
        .await
        .expect(403);
    let mut watch = al.watch(&format!("{one}&watch=true")).await;
    assert!(watch.event().await.starts_with("ADDED one@"));
    server.admin().delete(&format!("{maps}/one")).await.expect(200);
    al.post(maps, &config_map("one", "1")).await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn nobody_gives_what_they_do_not_have() {
    let server = Server::new().await;
    bind(&server.admin(), "default", "al", "ClusterRole", "admin")
        .await
        .expect(201);
    let al = server.user_named("al");
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |name: &str, rules: &[Value]| json!({"metadata": {"name": name}, "rules": rules});
    al.post(&roles, &role("reads", &[rule("", &["secrets"], &["get"])]))
        .await
        .expect(201);
    let refused = al
        .post(
            &roles,
            &role("more", &[rule("muster.dev", &["quotas"], &["patch", "get"])]),
        )
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"al\" (groups=[\"system:authenticated\"]) is attempting to grant \
         RBAC permissions not currently held:\n{APIGroups:[\"muster.dev\"], Resources:[\"quotas\"], Verbs:[\"patch\"]}"
    );
    let path = format!("{roles}/reads");
    al.merge(&path, &json!({"rules": [rule("*", &["*"], &["*"])]}))
        .await
        .expect(403);
    al.merge(&path, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect(200);
    // A label may put a role into another one, so it is held against the rules, too.
    server
        .admin()
        .post(&roles, &role("strong", &[rule("*", &["*"], &["*"])]))
        .await
        .expect(201);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    al.merge(&format!("{roles}/strong"), &label).await.expect(403);
    let owner = json!({"metadata": {"finalizers": ["example.com/x"]}});
    al.merge(&format!("{roles}/strong"), &owner).await.expect(200);
    bind(&al, "default", "bo", "ClusterRole", "view").await.expect(201);
    let refused = bind(&al, "default", "bo", "ClusterRole", "cluster-admin")
        .await
        .expect(403);
    assert!(
        refused.message().contains("is attempting to grant RBAC permissions"),
        "{}",
        refused.message()
    );
    let missing = bind(&al, "default", "bo", "Role", "none").await.expect(404);
    assert_eq!(missing.message(), "roles.rbac.authorization.k8s.io \"none\" not found");
    bind(&al, "", "bo", "ClusterRole", "view").await.expect(403);
    // Whoever is trusted with it may.
    let trusted = [
        rule("rbac.authorization.k8s.io", &["roles"], &["escalate"]),
        rule("rbac.authorization.k8s.io", &["clusterroles"], &["bind"]),
    ];
    allow(&server, "default", "al", &trusted).await;
    al.merge(&path, &json!({"rules": [rule("*", &["*"], &["*"])]}))
        .await
        .expect(200);
    bind(&al, "default", "bo", "ClusterRole", "cluster-admin")
        .await
        .expect(201);
    // A controller gives nobody anything, whatever else it may.
    bind(&server.controllers(), "default", "bo", "ClusterRole", "edit")
        .await
        .expect(403);
}

#[tokio::test(start_paused = true)]
async fn a_binding_keeps_its_role_and_says_when_the_role_is_not_there() {
    let server = Server::new().await;
    bind(&server.admin(), "default", "al", "Role", "none").await.expect(201);
    let refused = server.user_named("al").get(TASKS).await.expect(403);
    assert!(
        refused
            .message()
            .ends_with("in the namespace \"default\": RBAC: role.rbac.authorization.k8s.io \"none\" not found"),
        "{}",
        refused.message()
    );
    let path = format!("{RBAC}/namespaces/default/rolebindings/al-none");
    let refused = server
        .admin()
        .merge(&path, &json!({"roleRef": {"name": "other"}}))
        .await
        .expect(422);
    assert!(
        refused.message().contains("cannot change roleRef"),
        "{}",
        refused.message()
    );
    let bad = json!({
        "metadata": {"name": "bad"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "Robot", "name": "x"}, {"kind": "ServiceAccount", "name": "x"}],
    });
    let refused = server.admin().post(CLUSTER_ROLE_BINDINGS, &bad).await.expect(422);
    for field in ["roleRef.kind", "subjects[0].kind", "subjects[1].namespace"] {
        assert!(refused.message().contains(field), "{}", refused.message());
    }
    let bad =
        json!({"metadata": {"name": "bad"}, "rules": [{"verbs": [], "nonResourceURLs": ["/x"]}, {"verbs": ["get"]}]});
    let refused = server
        .admin()
        .post(&format!("{RBAC}/namespaces/default/roles"), &bad)
        .await
        .expect(422);
    for field in [
        "rules[0].verbs",
        "rules[0].nonResourceURLs",
        "rules[1].apiGroups",
        "rules[1].resources",
    ] {
        assert!(refused.message().contains(field), "{}", refused.message());
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_of_somebodys_own_joins_the_roles_that_are_put_together() {
    let server = Server::new().await;
    bind(&server.admin(), "default", "al", "ClusterRole", "admin")
        .await
        .expect(201);
    let al = server.user_named("al");
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    let role = json!({
        "metadata": {"name": "widgets", "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
        "rules": [rule("example.com", &["widgets"], &["get", "list"])],
    });
    al.post(CLUSTER_ROLES, &role).await.expect(403);
    let mut watch = server
        .admin()
        .watch(&format!("{CLUSTER_ROLES}?watch=true&resourceVersion=0"))
        .await;
    server.admin().post(CLUSTER_ROLES, &role).await.expect(201);
    // It goes into `edit`, and by way of that into `admin`.
    loop {
        let event = watch.next().await.unwrap();
        let object = &event["object"];
        if object["metadata"]["name"] == "admin" && object["rules"].to_string().contains("widgets") {
            break;
        }
    }
    al.get(widgets).await.expect(404);
    let whole = json!({"metadata": {"name": "mine"}, "aggregationRule": {"clusterRoleSelectors": [{}]}});
    bind(&server.admin(), "", "bo", "ClusterRole", "edit").await.expect(201);
    let mut may_write = rule("rbac.authorization.k8s.io", &["clusterroles"], &["create"]);
    may_write["resourceNames"] = json!([]);
    let role = json!({"metadata": {"name": "writes"}, "rules": [may_write]});
    server.admin().post(CLUSTER_ROLES, &role).await.expect(201);
    bind(&server.admin(), "", "bo", "ClusterRole", "writes")
        .await
        .expect(201);
    let refused = server.user_named("bo").post(CLUSTER_ROLES, &whole).await.expect(403);
    assert!(
        refused
            .message()
            .contains("must have cluster-admin privileges to use the aggregationRule"),
        "{}",
        refused.message()
    );
}

#[tokio::test(start_paused = true)]
async fn the_control_plane_goes_on_without_any_role() {
    let server = Server::new().await;
    let admin = server.admin();
    for kind in [CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES] {
        admin.delete(kind).await.expect(200);
    }
    server.user_named("al").get("/apis").await.expect(403);
    common::lead(&server).await;
    common::join(&server, "a1").await;
    server.agent("a1").get("/apis/muster.dev/v1/tasks").await.expect(200);
    let path = "/muster/v1/watch?resources=roles.rbac.authorization.k8s.io";
    let snapshot = server.controllers().watch(path).await.next().await.unwrap();
    assert_eq!(snapshot["type"], "SNAPSHOT");
    admin.get(TASKS).await.expect(200);
    // The next start makes them again.
    let again = Server::on(server.store.clone()).await;
    again.user_named("al").get("/apis").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn acting_as_somebody_needs_the_right_to_each_part_of_them() {
    let server = Server::new().await;
    let mut users = rule("", &["users"], &["impersonate"]);
    users["resourceNames"] = json!(["al"]);
    let mut groups = rule("", &["groups"], &["impersonate"]);
    groups["resourceNames"] = json!(["ml"]);
    let extras = rule("authentication.k8s.io", &["userextras/scopes"], &["impersonate"]);
    let role = json!({"metadata": {"name": "as"}, "rules": [users, groups, extras]});
    server.admin().post(CLUSTER_ROLES, &role).await.expect(201);
    bind(&server.admin(), "", "support", "ClusterRole", "as")
        .await
        .expect(201);
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let support = || server.user_named("support").with("impersonate-user", "al");
    let me = support()
        .with("impersonate-group", "ml")
        .with("impersonate-extra-scopes", "read")
        .post(whoami, &json!({}))
        .await
        .expect(201)
        .json;
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "al", "groups": ["ml", "system:authenticated"], "extra": {"scopes": ["read"]}})
    );
    for (header, value) in [
        ("impersonate-group", "system:masters"),
        ("impersonate-uid", "1"),
        ("impersonate-extra-other", "x"),
    ] {
        support().with(header, value).post(whoami, &json!({})).await.expect(403);
    }
    let other = server.user_named("support").with("impersonate-user", "bo");
    other.post(whoami, &json!({})).await.expect(403);
    support()
        .with("impersonate-more", "x")
        .post(whoami, &json!({}))
        .await
        .expect(400);
}

#[tokio::test(start_paused = true)]
async fn reviews_answer_what_requests_are_answered() {
    let server = Server::new().await;
    allow(
        &server,
        "default",
        "al",
        &[rule("muster.dev", &["tasks"], &["list", "get"])],
    )
    .await;
    let al = server.user_named("al");
    let review = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let status = al.post(path, &review).await.expect(201).json["status"].clone();
    let tasks = json!({"verbs": ["get", "list"], "apiGroups": ["muster.dev"], "resources": ["tasks"]});
    assert!(status["resourceRules"].as_array().unwrap().contains(&tasks), "{status}");
    assert!(status["nonResourceRules"].to_string().contains("/apis/*"), "{status}");
    assert_eq!(status["incomplete"], false);
    al.post(path, &json!({"spec": {}})).await.expect(400);
    let about = json!({"spec": {"user": "al", "resourceAttributes": {
        "verb": "list", "group": "muster.dev", "resource": "tasks", "namespace": "default",
    }}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let status = server.admin().post(reviews, &about).await.expect(201).json["status"].clone();
    assert_eq!(
        status,
        json!({"allowed": true, "reason": "RBAC: allowed by RoleBinding \"al-al/default\" of Role \"al\" to User \"al\""})
    );
    let agent = server.agent("a1").post(path, &review).await.expect(201).json;
    assert_eq!(agent["status"]["incomplete"], true, "what is wired is in no role");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_names_an_offer_needs_the_right_to_accept_it() {
    let server = Server::new().await;
    allow(&server, "default", "al", &[rule("muster.dev", &["tasks"], &["create"])]).await;
    let al = server.user_named("al");
    al.post(TASKS, &task("t")).await.expect(201);
    let mut taking = task("u");
    taking["spec"]["offer"] = json!("o");
    let refused = al.post(TASKS, &taking).await.expect(403);
    assert!(refused.message().contains("\"offers/accept\""), "{}", refused.message());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_and_a_token_of_one_user_are_the_same_user() {
    let server = Server::new().await;
    let later = server.env.now() + jiff::SignedDuration::from_secs(60);
    bind(&server.admin(), "default", "al", "ClusterRole", "view")
        .await
        .expect(201);
    let certified = server.certified(User::new("al", &[]), later);
    certified.get(TASKS).await.expect(200);
    server.user_named("al").get(TASKS).await.expect(200);
}
