//! Kubernetes' own kinds as newer clients send them. The bytes are those that Go's encoder writes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use serde_json::json;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A field of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}

fn body(api_version: &str, kind: &str, message: &[Vec<u8>]) -> Vec<u8> {
    let names = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [
        b"k8s\0".to_vec(),
        field(1, &names),
        field(2, &message.concat()),
        field(3, b""),
        field(4, b""),
    ]
    .concat()
}

/// Metadata with a name, and what Go writes of all other fields.
fn metadata(name: &str) -> Vec<u8> {
    let empty = b"\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0";
    field(1, &[field(1, name.as_bytes()), empty.to_vec()].concat())
}

#[tokio::test(start_paused = true)]
async fn what_newer_clients_create_is_there() {
    let server = Server::new().await;
    let admin = server.admin();
    let send = admin
        .clone()
        .with("content-type", PROTOBUF)
        .with("accept", "application/vnd.kubernetes.protobuf, application/json");
    let namespace = body(
        "v1",
        "Namespace",
        &[metadata("demo"), field(2, b""), field(3, &field(1, b""))],
    );
    let path = "/api/v1/namespaces?fieldManager=kubectl-create&fieldValidation=Strict";
    let answer = send.send("POST", path, namespace).await.expect(201);
    assert_eq!(answer.json["status"]["phase"], "Active");
    assert_eq!(answer.headers["content-type"], "application/json");

    let data = field(2, &[field(1, b"key"), field(2, b"value")].concat());
    let map = body("v1", "ConfigMap", &[metadata("cm"), data]);
    let maps = "/api/v1/namespaces/demo/configmaps";
    send.send("POST", &format!("{maps}?fieldValidation=Strict"), map.clone())
        .await
        .expect(201);
    let made = admin.get(&format!("{maps}/cm")).await.expect(200);
    assert_eq!(made.json["data"], json!({"key": "value"}));
    send.send("POST", maps, map.clone()).await.expect(409);
    let changed = body(
        "v1",
        "ConfigMap",
        &[metadata("cm"), field(2, &[field(1, b"key"), field(2, b"")].concat())],
    );
    let answer = send.send("PUT", &format!("{maps}/cm"), changed).await.expect(200);
    assert_eq!(answer.json["data"], json!({"key": ""}));

    let options = body(
        "v1",
        "DeleteOptions",
        &[field(2, &field(1, b"another")), field(4, b"Background")],
    );
    send.send("DELETE", &format!("{maps}/cm"), options).await.expect(409);
    let options = body("v1", "DeleteOptions", &[field(4, b"Background")]);
    send.send("DELETE", &format!("{maps}/cm"), options).await.expect(200);
    admin.get(&format!("{maps}/cm")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_newer_client_is_a_task_and_can_be_evicted() {
    let server = Server::new().await;
    let admin = server.admin();
    let send = admin.clone().with("content-type", PROTOBUF);
    let limit = field(1, &[field(1, b"cpu"), field(2, &field(1, b"500m"))].concat());
    let container = [field(1, b"c"), field(2, b"registry.example.com/x:1"), field(8, &limit)].concat();
    // The machine's network, processes and messages: not asked for, and written all the same.
    let spec = [field(2, &container), b"\x58\0\x60\0\x68\0".to_vec()].concat();
    let pod = body("v1", "Pod", &[metadata("p"), field(2, &spec), field(3, b"")]);
    let pods = "/api/v1/namespaces/default/pods";
    send.send("POST", pods, pod).await.expect(201);
    let task = admin.get(&format!("{TASKS}/p")).await.expect(200).json;
    assert_eq!(task["spec"]["limits"]["cpus"], "500m");
    let eviction = body("policy/v1", "Eviction", &[metadata("p"), field(2, b"")]);
    send.send("POST", &format!("{pods}/p/eviction"), eviction)
        .await
        .expect(201);
    admin.get(&format!("{TASKS}/p")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_off_or_not_meant_for_protobuf_is_refused() {
    let server = Server::new().await;
    let send = server.admin().with("content-type", PROTOBUF);
    let map = body(
        "v1",
        "ConfigMap",
        &[
            metadata("cm"),
            field(2, &[field(1, b"key"), field(2, b"value")].concat()),
        ],
    );
    let maps = "/api/v1/namespaces/default/configmaps";
    for end in [0, 3, 4, 9, 30, map.len() - 5] {
        let answer = send.send("POST", maps, map[..end].to_vec()).await;
        assert!([400, 415].contains(&answer.code.as_u16()), "{end}: {}", answer.json);
        assert_eq!(answer.json["kind"], "Status");
    }
    let answer = send.send("POST", maps, map[..map.len() - 5].to_vec()).await.expect(400);
    assert!(
        answer
            .message()
            .contains("not protobuf: it ends within a field (at byte"),
        "{}",
        answer.message()
    );
    let answer = send
        .send("POST", TASKS, body("muster.dev/v1", "Task", &[metadata("t")]))
        .await
        .expect(415);
    assert!(answer.message().contains("application/json"), "{}", answer.message());
    // A body of another kind than that of the path.
    send.send("POST", "/api/v1/namespaces", map).await.expect(400);
}
