use super::*;

const MS: i64 = 1_700_000_000_000;

fn new_log(limit: u64) -> (tempfile::TempDir, LogWriter) {
    let directory = tempfile::tempdir().expect("a directory");
    let writer = LogWriter::begin(directory.path(), limit).expect("begun");
    (directory, writer)
}

fn text(chunk: &LogChunk) -> String {
    chunk
        .lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.bytes).into_owned())
        .collect()
}

fn read_all(directory: &Path, mut query: LogQuery) -> String {
    let mut all = String::new();
    loop {
        let chunk = read(directory, &query, true).expect("read");
        all += &text(&chunk);
        if chunk.end {
            return all;
        }
        query.after = Some(chunk.position);
    }
}

#[test]
fn lines_keep_their_stream_and_time_and_pieces_are_joined() {
    let (directory, mut writer) = new_log(0);
    writer.take(MS, Stream::Stdout, b"one\ntw").expect("taken");
    writer.take(MS + 1, Stream::Stderr, b"oops\n").expect("taken");
    writer.take(MS + 2, Stream::Stdout, b"o\n\nthree").expect("taken");
    let chunk = read(directory.path(), &LogQuery::default(), false).expect("read");
    let lines: Vec<_> = chunk
        .lines
        .iter()
        .map(|line| (line.time_ms - MS, line.stream, line.bytes.as_slice()))
        .collect();
    assert_eq!(
        lines,
        [
            (0, Stream::Stdout, b"one\n".as_slice()),
            (1, Stream::Stderr, b"oops\n"),
            (2, Stream::Stdout, b"two\n"),
            (2, Stream::Stdout, b"\n"),
        ]
    );
    assert!(!chunk.end);
    writer.flush(MS + 3).expect("flushed");
    let query = LogQuery {
        after: Some(chunk.position),
        ..LogQuery::default()
    };
    let chunk = read(directory.path(), &query, true).expect("read");
    assert_eq!(
        (text(&chunk).as_str(), chunk.end),
        ("three", true),
        "a last line may lack its newline"
    );
}

#[test]
fn line_of_any_length_is_kept_in_pieces() {
    let (directory, mut writer) = new_log(0);
    let long = "x".repeat(3 * LOG_LINE_BYTES + 17) + "\n";
    for part in long.as_bytes().chunks(1000) {
        writer.take(MS, Stream::Stdout, part).expect("taken");
    }
    assert_eq!(read_all(directory.path(), LogQuery::default()), long);
    let chunk = read(directory.path(), &LogQuery::default(), true).expect("read");
    assert!(chunk.lines.iter().all(|line| line.bytes.len() <= LOG_LINE_BYTES + 1));
}

#[test]
fn position_survives_rotation() {
    let (directory, mut writer) = new_log(LOG_BYTES_MIN);
    let line = |n: u32| format!("line {n} {}\n", "y".repeat(100));
    (0..100).for_each(|n| writer.take(MS, Stream::Stdout, line(n).as_bytes()).expect("taken"));
    let first = read(directory.path(), &LogQuery::default(), false).expect("read");
    assert_eq!(first.lines.len(), 100);
    // Enough to rotate once: what was read is in the file before now.
    (100..300).for_each(|n| writer.take(MS, Stream::Stdout, line(n).as_bytes()).expect("taken"));
    assert_eq!(writer.generation, 1);
    let query = LogQuery {
        after: Some(first.position.clone()),
        ..LogQuery::default()
    };
    assert_eq!(
        read_all(directory.path(), query.clone()),
        (100..300).map(line).collect::<String>()
    );
    // And again: the file that the position is in is gone, so reading goes on with the oldest that is left.
    (300..700).for_each(|n| writer.take(MS, Stream::Stdout, line(n).as_bytes()).expect("taken"));
    let rest = read_all(directory.path(), query);
    assert!(rest.ends_with(&line(699)) && !rest.contains(&line(100)));
    assert!(fs::metadata(directory.path().join(BEFORE)).expect("there").len() <= LOG_BYTES_MIN);
}

#[test]
fn tail_reaches_over_rotation_and_reads_no_more_than_asked() {
    let (directory, mut writer) = new_log(LOG_BYTES_MIN);
    let line = |n: u32| format!("{n} {}\n", "z".repeat(50));
    (0..600).for_each(|n| writer.take(MS, Stream::Stdout, line(n).as_bytes()).expect("taken"));
    assert!(writer.generation > 0);
    for count in [0, 1, 2, 7, 300, 450] {
        let query = LogQuery {
            tail: Some(count),
            ..LogQuery::default()
        };
        let want: String = (600 - count as u32..600).map(line).collect();
        assert_eq!(read_all(directory.path(), query), want, "tail {count}");
    }
    let everything = read_all(directory.path(), LogQuery::default());
    assert_eq!(
        read_all(
            directory.path(),
            LogQuery {
                tail: Some(100_000),
                ..LogQuery::default()
            }
        ),
        everything
    );
}

#[test]
fn tail_of_an_empty_log_is_empty() {
    let (directory, _writer) = new_log(0);
    let chunk = read(
        directory.path(),
        &LogQuery {
            tail: Some(5),
            ..LogQuery::default()
        },
        true,
    )
    .expect("read");
    assert_eq!((chunk.lines.len(), chunk.end), (0, true));
}

#[test]
fn since_leaves_out_what_is_older() {
    let (directory, mut writer) = new_log(0);
    (0..10_i64).for_each(|n| {
        writer
            .take(MS + n, Stream::Stdout, format!("{n}\n").as_bytes())
            .expect("taken")
    });
    let query = LogQuery {
        since_ms: Some(MS + 7),
        ..LogQuery::default()
    };
    assert_eq!(read_all(directory.path(), query), "7\n8\n9\n");
}

#[test]
fn chunk_is_bounded_and_nothing_is_lost_between_chunks() {
    let (directory, mut writer) = new_log(0);
    let line = |n: u32| format!("{n} {}\n", "w".repeat(1000));
    let all: String = (0..3000).map(line).collect();
    all.as_bytes()
        .chunks(60_000)
        .for_each(|part| writer.take(MS, Stream::Stdout, part).expect("taken"));
    let chunk = read(directory.path(), &LogQuery::default(), true).expect("read");
    assert!(!chunk.end && text(&chunk).len() <= LOG_CHUNK_BYTES + LOG_LINE_BYTES);
    assert_eq!(read_all(directory.path(), LogQuery::default()), all);
}

#[test]
fn torn_line_is_skipped() {
    let (directory, mut writer) = new_log(0);
    writer.file.write_all(b"17000 std\n").expect("written");
    writer.take(MS, Stream::Stdout, b"whole\n").expect("taken");
    assert_eq!(read_all(directory.path(), LogQuery::default()), "whole\n");
}

#[test]
fn position_that_is_none_is_invalid() {
    let (directory, _writer) = new_log(0);
    let query = LogQuery {
        after: Some(LogPosition("yesterday".to_owned())),
        ..LogQuery::default()
    };
    assert!(matches!(read(directory.path(), &query, false), Err(Error::Invalid(_))));
}
