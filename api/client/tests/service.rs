//! The client against small services in the same process.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use muster_api::v1::Task;
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_client::kube::api::{Api, ListParams};
use muster_client::kube::client::Body;
use muster_client::{Client, DEADLINE, Error, Fence, Patch, Preconditions};
use serde_json::{Value, json};
use tokio::time::Instant;

/// What the service was asked.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    line: String,
    authorization: String,
    fence: String,
    content_type: String,
    body: Value,
}

type Log = Arc<Mutex<Vec<Asked>>>;

/// A client of a service that answers everything alike, and what that was asked.
fn client(status: u16, headers: &'static [(&'static str, &'static str)], answer: Value) -> (Client, Log) {
    let log = Log::default();
    let kept = log.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answer) = (kept.clone(), answer.to_string());
        async move {
            let sent = request.headers().clone();
            let header = |name: &str| {
                let value = sent.get(name).map(|value| value.to_str().expect("text"));
                value.unwrap_or_default().to_owned()
            };
            let mut asked = Asked {
                line: format!("{} {}", request.method(), request.uri()),
                authorization: header("authorization"),
                fence: header("muster-fence"),
                content_type: header("content-type"),
                body: Value::Null,
            };
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            if !body.is_empty() {
                asked.body = serde_json::from_slice(&body).expect("json");
            }
            log.lock().expect("log").push(asked);
            let mut response = Response::builder().status(StatusCode::from_u16(status).expect("a code"));
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer))).expect("a response"))
        }
    });
    (Client::in_process(service, "secret"), log)
}

fn last(log: &Log) -> Asked {
    log.lock().expect("log").last().expect("a request").clone()
}

fn fence() -> Fence {
    "muster-system/muster-controllers@7".parse().expect("a fence")
}

#[tokio::test]
async fn every_request_says_who_asks_and_a_fenced_one_under_which_lease() {
    let (client, log) = client(200, &[], json!({ "tasks": ["t"], "resourceVersion": "9" }));
    let request = AcceptRequest {
        bind: vec!["t".into()],
        ..AcceptRequest::default()
    };
    let result = client.accept("ns", "o", &request).await.expect("accepted");
    assert_eq!(result.resource_version, "9");
    let asked = last(&log);
    assert_eq!(asked.line, "POST /apis/muster.dev/v1/namespaces/ns/offers/o/accept");
    assert_eq!(
        (asked.authorization.as_str(), asked.fence.as_str()),
        ("Bearer secret", "")
    );
    assert_eq!(asked.body, json!({ "bind": ["t"] }));

    let fenced = client.fenced(&fence());
    fenced.accept("ns", "o", &request).await.expect("accepted");
    let asked = last(&log);
    assert_eq!(asked.authorization, "Bearer secret");
    assert_eq!(asked.fence, "muster-system/muster-controllers@7");
}

#[tokio::test]
async fn a_kube_api_sends_the_same_credentials() {
    let (client, log) = client(200, &[], json!({ "metadata": {}, "items": [] }));
    let tasks: Api<Task> = Api::namespaced(client.fenced(&fence()).kube(), "ns");
    tasks.list(&ListParams::default()).await.expect("a list");
    let asked = last(&log);
    assert!(
        asked.line.starts_with("GET /apis/muster.dev/v1/namespaces/ns/tasks"),
        "{}",
        asked.line
    );
    assert_eq!(
        (asked.authorization.as_str(), asked.fence.as_str()),
        ("Bearer secret", "muster-system/muster-controllers@7")
    );
}

#[tokio::test]
async fn a_lease_is_taken_and_its_incarnation_is_the_fence() {
    let answer = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": "muster-agents", "name": "a1", "resourceVersion": "41" },
        "spec": { "holderIdentity": "me" },
    });
    let (client, log) = client(201, &[], answer);
    let ttl = Duration::from_secs(15);
    let fence = client
        .create_ephemeral_lease("muster-agents", "a1", "me", ttl)
        .await
        .expect("taken");
    assert_eq!(fence.to_string(), "muster-agents/a1@41");
    let asked = last(&log);
    assert_eq!(
        asked.line,
        "POST /apis/coordination.k8s.io/v1/namespaces/muster-agents/leases"
    );
    assert_eq!(asked.body["metadata"]["annotations"]["muster.dev/ephemeral"], "true");
    assert_eq!(asked.body["spec"]["leaseDurationSeconds"], 15);

    client.renew(&fence).await.expect("renewed");
    let asked = last(&log);
    assert_eq!(
        asked.line,
        "POST /apis/coordination.k8s.io/v1/namespaces/muster-agents/leases/a1/renew"
    );
    assert_eq!(asked.fence, "muster-agents/a1@41");
    assert_eq!(
        client.held_lease("muster-agents", "a1", "me").await.expect("asked"),
        Some(fence)
    );
    assert_eq!(
        client.held_lease("muster-agents", "a1", "you").await.expect("asked"),
        None
    );
}

#[tokio::test]
async fn patches_and_deletes_say_what_they_mean() {
    let (client, log) = client(200, &[], json!({ "kind": "Status", "status": "Success" }));
    let path = "/apis/muster.dev/v1/agents/a1/status";
    client
        .patch_at::<Value>(path, &Patch::Merge(json!({ "status": {} })))
        .await
        .expect("patched");
    assert_eq!(last(&log).content_type, "application/merge-patch+json");
    let apply = Patch::Apply {
        manager: "my tool".into(),
        object: json!({ "kind": "Agent" }),
    };
    client.patch_at::<Value>(path, &apply).await.expect("applied");
    let asked = last(&log);
    assert_eq!(asked.line, format!("PATCH {path}?fieldManager=my%20tool&force=true"));
    assert_eq!(asked.content_type, "application/apply-patch+yaml");
    let only_if = Preconditions {
        uid: Some("u".into()),
        resource_version: None,
    };
    client
        .delete_at::<Value>("/apis/muster.dev/v1/agents/a1", &only_if)
        .await
        .expect("deleted");
    assert_eq!(last(&log).body["preconditions"], json!({ "uid": "u" }));
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no" })
}

#[tokio::test]
async fn a_refusal_keeps_what_the_server_said() {
    let (fenced, _) = client(412, &[], status(412, "Fenced"));
    let error = fenced.put_plan(&Default::default()).await.expect_err("refused");
    assert!(
        matches!(&error, Error::Fenced(status) if status.message == "no"),
        "{error:?}"
    );

    let (busy, _) = client(503, &[("retry-after", "3")], status(503, "ServiceUnavailable"));
    let error = busy.get_plan().await.expect_err("refused");
    assert!(matches!(error, Error::Retryable { after: Some(after), .. } if after == Duration::from_secs(3)));

    // A proxy in between does not speak of `Status`.
    let (proxy, _) = client(404, &[], json!("nothing here"));
    let error = proxy
        .decline("ns", "o", &DeclineRequest::default())
        .await
        .expect_err("refused");
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
}

/// Answers so many times that there is too much to do, and then well.
fn busy(times: u32, after: &'static str) -> (Client, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        let refused = count.fetch_add(1, Ordering::Relaxed) < times;
        let (code, body) = if refused {
            (429, status(429, "TooManyRequests"))
        } else {
            (200, json!({}))
        };
        let response = Response::builder().status(code).header("retry-after", after);
        let response = response.body(Full::new(Bytes::from(body.to_string())));
        async move { Ok::<_, Infallible>(response.expect("it is written here")) }
    });
    (Client::in_process(service, "secret"), asked)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_too_much_to_do_is_asked_again_when_it_says() {
    let begun = Instant::now();
    let (client, asked) = busy(2, "1");
    client
        .put_plan(&Default::default())
        .await
        .expect("done in the end, though it is a write");
    assert_eq!((asked.load(Ordering::Relaxed), begun.elapsed().as_secs()), (3, 2));
    // Not for ever, and not when that takes long.
    let (client, asked) = busy(100, "1");
    let error = client.put_plan(&Default::default()).await.expect_err("too busy");
    assert!(matches!(error, Error::Retryable { after: Some(_), .. }), "{error:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 5);
    let (client, asked) = busy(100, "60");
    client.put_plan(&Default::default()).await.expect_err("too busy");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up() {
    let service =
        tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let client = Client::in_process(service, "secret");
    let error = client.get_plan().await.expect_err("no answer");
    assert!(
        matches!(error, Error::Timeout(waited) if waited == DEADLINE),
        "{error:?}"
    );
}
