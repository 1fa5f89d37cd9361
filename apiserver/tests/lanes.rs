//! Who is served when more is asked for than can be done at once.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic, too")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use common::{CONFIG_MAPS, LEASES, Lines, Server, TASKS, config_map, join, task};
use futures::FutureExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use muster_apiserver::auth::User;
use muster_apiserver::lanes::{Lane, Limits};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::ServiceExt as _;

/// A server where users have eight seats.
async fn server() -> Server {
    let server = Server::new().await;
    server.state.lanes.limit_by(Limits { seats: 8, lasting: 2 });
    server
}

/// Asks for an object to be made, and sends it only when told to: somebody slow, who holds a seat as long as that takes.
fn slowly(server: &Server, user: &User, name: &str, go: &Arc<Notify>) -> JoinHandle<Response<Body>> {
    let (object, go) = (config_map(name, "1").to_string(), go.clone());
    let body = Body::from_stream(futures::stream::once(async move {
        go.notified().await;
        Ok::<_, std::convert::Infallible>(Bytes::from(object))
    }));
    let request = Request::post(CONFIG_MAPS)
        .header("authorization", format!("Bearer {}", server.token(user)))
        .body(body)
        .unwrap();
    tokio::spawn(server.router.clone().oneshot(request).map(|answer| answer.unwrap()))
}

/// As many of them, of whom those in vain have been answered when this returns.
async fn flood(server: &Server, count: usize, go: &Arc<Notify>) -> Vec<JoinHandle<Response<Body>>> {
    let jo = User::new("jo", &["ml"]);
    let flood: Vec<_> = (0..count)
        .map(|number| slowly(server, &jo, &format!("flood-{number}"), go))
        .collect();
    while server.state.lanes.census(Lane::Users).refused + 4 + 128 < count as u64 {
        tokio::task::yield_now().await;
    }
    flood
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_told_to_come_again_and_holds_up_nobody_else() {
    let server = server().await;
    let session = join(&server, "a1").await;
    let go = Arc::new(Notify::new());
    // Four are worked on, 128 wait, the others are refused.
    let flood = flood(&server, 140, &go).await;
    let census = server.state.lanes.census(Lane::Users);
    assert_eq!((census.seated, census.waiting, census.refused), (4, 128, 8));

    // The clock stands still: none of these waits for anything that has a deadline.
    let begun = Instant::now();
    let agent = server.agent("a1").fenced("muster-agents/a1", &session);
    agent
        .post(&format!("{LEASES}/muster-agents/leases/a1/renew"), &json!({}))
        .await
        .expect(200);
    agent.get("/apis/muster.dev/v1/agents/a1").await.expect(200);
    server.controllers().get(TASKS).await.expect(200);
    server.admin().post(TASKS, &task("t")).await.expect(201);
    server.anonymous().get("/readyz").await.expect(200);
    let another = server.user_in("al", &["ml"]);
    another.get(&format!("{TASKS}/t")).await.expect(200);
    another.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    assert_eq!(Instant::now(), begun);

    // Whoever floods is told so, in the words that clients know.
    let answer = server.jo().get(TASKS).await.expect(429);
    assert_eq!(answer.reason(), "TooManyRequests");
    assert_eq!(
        (
            &answer.headers["retry-after"],
            &answer.json["details"]["retryAfterSeconds"]
        ),
        (&"1".parse().unwrap(), &json!(1))
    );
    let words = "the server has received too many requests and has asked us to try again later: 128 requests of jo wait already";
    assert!(answer.message().starts_with(words), "{}", answer.message());
    let metrics = server.admin().get("/metrics").await.expect(200);
    let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
    for line in [
        "muster_lane_seats{lane=\"users\"} 8",
        "muster_lane_requests{lane=\"users\",state=\"seated\"} 4",
        "muster_lane_requests{lane=\"users\",state=\"waiting\"} 128",
        "muster_lane_refused_total{lane=\"users\"} 9",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }

    // What waited is done in the end, and no seat is lost.
    let mut codes = std::collections::BTreeMap::new();
    let served = async {
        for asked in flood {
            while !asked.is_finished() {
                go.notify_waiters();
                tokio::task::yield_now().await;
            }
            *codes.entry(asked.await.unwrap().status().as_u16()).or_insert(0) += 1;
        }
    };
    served.await;
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), [(201, 132), (429, 8)]);
    assert_eq!(server.state.lanes.census(Lane::Users).seated, 0);
    server.jo().get(TASKS).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_leaves_seat_and_place() {
    let server = server().await;
    let go = Arc::new(Notify::new());
    let flood = flood(&server, 132, &go).await;
    while server.state.lanes.census(Lane::Users).waiting < 128 {
        tokio::task::yield_now().await;
    }
    for asked in &flood {
        asked.abort();
    }
    for asked in flood {
        assert!(asked.await.unwrap_err().is_cancelled());
    }
    let census = server.state.lanes.census(Lane::Users);
    assert_eq!((census.seated, census.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_holds_a_seat_for_so_long_and_no_longer() {
    let server = server().await;
    let begun = Instant::now();
    let answer = slowly(&server, &User::admin(), "never", &Arc::new(Notify::new()))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(begun.elapsed().as_secs(), 30);
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&bytes).unwrap();
    assert!(status["message"].as_str().unwrap().contains("within 30 s"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn watches_hold_no_seat_and_are_bounded_for_each_user() {
    let server = server().await;
    let jo = server.jo();
    let path = format!("{CONFIG_MAPS}?watch=true");
    let first: Lines = jo.watch(&path).await;
    let _second = jo.watch(&path).await;
    let census = server.state.lanes.census(Lane::Users);
    assert_eq!((census.seated, census.lasting), (0, 2));
    let refused = jo.get(&path).await.expect(429);
    assert!(
        refused.message().contains("2 watches and streams of jo are open"),
        "{}",
        refused.message()
    );
    assert_eq!(refused.headers["retry-after"], "10");
    jo.get(CONFIG_MAPS).await.expect(200);
    let _another = server.user_in("al", &["ml"]).watch(&path).await;
    // One that is not begun does not count.
    server.user_named("stranger").get(&path).await.expect(403);
    drop(first);
    assert_eq!(server.state.lanes.census(Lane::Users).lasting, 2);
    let mut again = jo.watch(&path).await;
    server
        .admin()
        .post(CONFIG_MAPS, &config_map("c", "1"))
        .await
        .expect(201);
    assert!(again.event().await.starts_with("ADDED c@"));
    // Agents are as many as they are.
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(
            server
                .agent("a1")
                .watch("/muster/v1/watch?resources=tasks.muster.dev")
                .await,
        );
    }
    assert_eq!(server.state.lanes.census(Lane::System).lasting, 5);
    let deadline = tokio::time::timeout(Duration::from_secs(1), held[0].next()).await;
    assert!(deadline.expect("a snapshot comes").is_some());
}
