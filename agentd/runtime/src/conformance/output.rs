//! What commands print.

use super::{Harness, NUMBERS, Program, id, number, output, run_to_exit, text};
use crate::limits::LOG_BYTES_MIN;
use crate::{Error, LogPosition, LogQuery, Stream};

pub(super) async fn output_of_both_streams_is_kept(harness: &dyn Harness) {
    let (runtime, id, exit) = run_to_exit(harness, Program::Print).await;
    let lines = output(&*runtime, &id, LogQuery::default()).await;
    assert_eq!(text(&lines, Stream::Stdout), "out 1\nout 2\nout 3");
    assert_eq!(text(&lines, Stream::Stderr), "err 1\n");
    let started_ms = exit.started_ms.expect("it ran");
    assert!(
        lines.iter().all(|line| line.time_ms >= started_ms),
        "lines have the time they were read at"
    );
}

pub(super) async fn tail_gives_the_last_lines(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Numbers).await;
    for tail in [0, 1, 10, NUMBERS - 1] {
        let lines = output(
            &*runtime,
            &id,
            LogQuery {
                tail: Some(tail),
                ..LogQuery::default()
            },
        )
        .await;
        assert_eq!(
            text(&lines, Stream::Stdout),
            (NUMBERS - tail..NUMBERS).map(number).collect::<String>(),
            "tail {tail}"
        );
    }
    let lines = output(
        &*runtime,
        &id,
        LogQuery {
            tail: Some(10 * NUMBERS),
            ..LogQuery::default()
        },
    )
    .await;
    assert_eq!(lines.len(), NUMBERS, "there are no more");
}

pub(super) async fn output_can_be_read_on_from_a_position_over_a_rotation(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let mut spec = harness.spec(Program::Numbers);
    spec.limits.log_bytes = LOG_BYTES_MIN;
    runtime.create(&id, &spec).await.expect("created");
    let before = runtime.logs(&id, &LogQuery::default()).await.expect("read");
    assert_eq!((before.lines.len(), before.end), (0, false), "there is nothing yet");
    runtime.start(&id).await.expect("started");
    let query = LogQuery {
        after: Some(before.position),
        ..LogQuery::default()
    };
    let lines = output(&*runtime, &id, query).await;
    assert_eq!(
        text(&lines, Stream::Stdout),
        (0..NUMBERS).map(number).collect::<String>()
    );
    // A position is as good for a later caller, and gives the same again.
    let first = runtime.logs(&id, &LogQuery::default()).await.expect("read");
    let after = LogQuery {
        after: Some(first.position),
        tail: Some(1),
        ..LogQuery::default()
    };
    let rest = output(&*harness.runtime(), &id, after).await;
    assert_eq!(
        first.lines.len() + rest.len(),
        NUMBERS,
        "nothing twice, nothing lost; tail does not matter after a position"
    );
}

pub(super) async fn output_older_than_asked_is_left_out(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Numbers).await;
    let all = output(&*runtime, &id, LogQuery::default()).await;
    let since_ms = all[NUMBERS / 2].time_ms;
    assert!(all[0].time_ms < since_ms, "there is a pause in between");
    let since = output(
        &*runtime,
        &id,
        LogQuery {
            since_ms: Some(since_ms),
            ..LogQuery::default()
        },
    )
    .await;
    assert_eq!(
        since,
        all.into_iter()
            .filter(|line| line.time_ms >= since_ms)
            .collect::<Vec<_>>()
    );
}

pub(super) async fn position_that_is_none_is_invalid(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Print).await;
    let query = LogQuery {
        after: Some(LogPosition("yesterday".to_owned())),
        ..LogQuery::default()
    };
    assert!(matches!(runtime.logs(&id, &query).await, Err(Error::Invalid(_))));
}
