use std::collections::VecDeque;
use std::sync::Mutex;

use futures::{StreamExt, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use muster_api::env::SystemEnv;
use muster_store::{Compare, MemoryStore, Op, Txn};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::auth::Tokens;
use crate::state::Config;
use crate::{hub, kinds};

type Opened = std::result::Result<Vec<std::result::Result<LogLine, LogError>>, LogError>;

/// Answers each request with the next of the prepared answers, and tells what it was asked.
struct Script {
    answers: Mutex<VecDeque<Opened>>,
    asked: mpsc::UnboundedSender<(String, String, LogQuery)>,
}

#[async_trait]
impl LogSource for Script {
    async fn open(
        &self,
        node: Node<'_>,
        container: &str,
        query: &LogQuery,
    ) -> std::result::Result<BoxStream<'static, std::result::Result<LogLine, LogError>>, LogError> {
        let asked = (node.address.to_owned(), container.to_owned(), query.clone());
        self.asked.send(asked).expect("the test listens");
        let next = self
            .answers
            .lock()
            .unwrap()
            .pop_front()
            .expect("the test prepared enough answers");
        Ok(stream::iter(next?).boxed())
    }
}

fn line(text: &str, position: &str) -> std::result::Result<LogLine, LogError> {
    let position = position.to_owned();
    Ok(LogLine {
        time_ms: 1_700_000_000_123,
        stream: "Stdout".to_owned(),
        text: format!("{text}\n"),
        position,
    })
}

fn broken() -> LogError {
    LogError::Unreachable("connection reset".to_owned())
}

struct Fixture {
    state: Arc<State>,
    asked: mpsc::UnboundedReceiver<(String, String, LogQuery)>,
}

impl Fixture {
    async fn new(answers: Vec<Opened>) -> Fixture {
        let (sender, asked) = mpsc::unbounded_channel();
        let source = Script {
            answers: Mutex::new(answers.into()),
            asked: sender,
        };
        let config = Config {
            store: Arc::new(MemoryStore::new()),
            env: Arc::new(SystemEnv),
            resources: kinds::resources(),
            authenticator: Arc::new(Tokens::in_memory()),
            logs: Arc::new(source),
            membership: Default::default(),
        };
        let fixture = Fixture {
            state: State::start(config).await.unwrap(),
            asked,
        };
        fixture
            .put(
                "Agent",
                "agents",
                "",
                "a1",
                json!({"spec": {}, "status": {"address": "node:1"}}),
            )
            .await;
        fixture
    }

    /// Puts an object as it is, in the place of one that is there.
    async fn put(&self, kind: &str, plural: &str, namespace: &str, name: &str, mut object: Value) {
        object["metadata"] = json!({"name": name, "namespace": namespace, "uid": "u"});
        let key = keys::object(&self.state.resources.muster(plural).resource, namespace, name);
        let value = hub::encode("muster.dev/v1", kind, object.as_object().unwrap().clone());
        let compare = match self.state.store.get(&key).await.unwrap() {
            Some(entry) => Compare::modified(key.clone(), entry.mod_revision),
            None => Compare::absent(key.clone()),
        };
        let txn = Txn {
            compares: vec![compare],
            ops: vec![Op::put(key, value)],
        };
        let revision = self.state.store.commit(txn).await.unwrap();
        self.state
            .hub
            .reach(revision, std::time::Duration::from_secs(10))
            .await
            .unwrap();
    }

    async fn task(&self, phase: &str, attempts: u32) {
        let attempts: Vec<Value> = (1..=attempts).map(|number| json!({"number": number})).collect();
        let status = json!({"phase": phase, "agent": "a1", "attempts": attempts});
        self.put(
            "Task",
            "tasks",
            "d",
            "t",
            json!({"spec": {"command": ["x"]}, "status": status}),
        )
        .await;
    }

    async fn get(&self, query: &str) -> Result<Response> {
        answer(&self.state, "d", "t", &Query::parse(Some(query))).await
    }

    async fn text(&self, query: &str) -> String {
        let body = self.get(query).await.unwrap().into_body();
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    async fn refusal(&self, query: &str) -> (StatusCode, String) {
        let error = self.get(query).await.map(|_| ()).unwrap_err();
        (error.code, error.message)
    }
}

#[tokio::test]
async fn lines_become_text() {
    let two = || Ok(vec![line("one", "1"), line("two", "2")]);
    let mut fixture = Fixture::new(vec![two(), two()]).await;
    fixture.task("Finished", 3).await;
    assert_eq!(fixture.text("tailLines=2").await, "one\ntwo\n");
    let query = LogQuery {
        tail: Some(2),
        ..LogQuery::default()
    };
    assert_eq!(
        fixture.asked.recv().await.unwrap(),
        ("node:1".to_owned(), "u-3".to_owned(), query)
    );
    assert_eq!(
        fixture.text("timestamps=true&previous=true").await,
        "2023-11-14T22:13:20.123Z one\n2023-11-14T22:13:20.123Z two\n"
    );
    assert_eq!(fixture.asked.recv().await.unwrap().1, "u-2");
}

#[tokio::test]
async fn what_cannot_be_got_is_said_clearly() {
    let fixture = Fixture::new(vec![Err(broken()), Err(LogError::NotFound)]).await;
    assert_eq!(
        fixture.refusal("").await,
        (StatusCode::NOT_FOUND, "tasks.muster.dev \"t\" not found".to_owned())
    );

    fixture
        .put(
            "Task",
            "tasks",
            "d",
            "t",
            json!({"spec": {"command": ["x"]}, "status": {"phase": "Pending"}}),
        )
        .await;
    let (code, message) = fixture.refusal("").await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert_eq!(message, "task \"t\" is Pending: no logs yet (it waits for an offer)");
    fixture.task("Starting", 0).await;
    assert!(
        fixture
            .refusal("")
            .await
            .1
            .starts_with("task \"t\" is Starting: no logs yet")
    );
    fixture.task("Dropped", 0).await;
    assert!(fixture.refusal("").await.1.contains("was never run"));

    fixture.task("Running", 1).await;
    assert_eq!(
        fixture.refusal("").await,
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "agent \"a1\" at node:1 cannot be reached: connection reset".to_owned()
        )
    );
    assert_eq!(fixture.refusal("").await.0, StatusCode::NOT_FOUND);
    assert_eq!(fixture.refusal("previous=true").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        fixture.refusal("attempt=2").await.1,
        "task \"t\" has no attempt 2; the last one is 1"
    );
    for query in [
        "attempt=0",
        "attempt=x",
        "tailLines=-1",
        "sinceTime=yesterday",
        "sinceTime=x&sinceSeconds=1",
        "follow=maybe",
    ] {
        assert_eq!(fixture.refusal(query).await.0, StatusCode::BAD_REQUEST, "{query}");
    }

    fixture.put("Agent", "agents", "", "a1", json!({"spec": {}})).await;
    assert_eq!(fixture.refusal("").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn who_follows_gets_every_line_across_restarts_of_the_agent() {
    let mut fixture = Fixture::new(vec![
        Ok(vec![line("one", "1"), Err(broken())]),
        Err(broken()),
        Err(broken()),
        Ok(vec![line("two", "2")]),
    ])
    .await;
    fixture.task("Finished", 1).await;
    assert_eq!(fixture.text("follow=true&tailLines=5").await, "one\ntwo\n");
    let first = fixture.asked.recv().await.unwrap().2;
    assert_eq!(
        first,
        LogQuery {
            follow: true,
            tail: Some(5),
            ..LogQuery::default()
        }
    );
    for _ in 0..3 {
        assert_eq!(fixture.asked.recv().await.unwrap().2.after.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn who_follows_gets_the_attempts_that_come_after() {
    let answers = vec![Ok(vec![line("one", "1")]), Ok(vec![line("again", "1")])];
    let mut fixture = Fixture::new(answers).await;
    fixture.task("Running", 1).await;
    let mut body = fixture.get("follow=true").await.unwrap().into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "one\n");
    fixture.task("Running", 2).await;
    assert_eq!(body.next().await.unwrap().unwrap(), "again\n");
    fixture.task("Failed", 2).await;
    assert!(body.next().await.is_none());
    assert_eq!(fixture.asked.recv().await.unwrap().1, "u-1");
    assert_eq!(fixture.asked.recv().await.unwrap().1, "u-2");
}

#[tokio::test]
async fn an_answer_that_is_not_complete_does_not_look_complete() {
    let fixture = Fixture::new(vec![Ok(vec![line("one", "1"), Err(broken())])]).await;
    fixture.task("Running", 1).await;
    let body = fixture.get("").await.unwrap().into_body();
    assert!(body.collect().await.is_err());
}

#[tokio::test]
async fn followers_are_let_go_when_the_server_stops() {
    let fixture = Fixture::new(vec![Ok(vec![line("one", "1")])]).await;
    fixture.task("Running", 1).await;
    let mut body = fixture.get("follow=true").await.unwrap().into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "one\n");
    fixture.state.stop();
    assert!(body.next().await.is_none());
}
