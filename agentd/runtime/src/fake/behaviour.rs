//! What the command of a fake container does.

use std::time::Duration;

use crate::{ContainerSpec, Stream};

/// What the command of one container does, from its start on. Built from [`Behaviour::exits`] and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// How it ends when nobody stops it.
    pub ending: Ending,
    /// Whether only SIGKILL ends it.
    pub ignores_signals: bool,
    /// What it prints, each at its time after the start; in rising order of time.
    pub output: Vec<Output>,
}

/// How a command ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It does not.
    Never,
    /// After this long, with this exit code.
    Exit(Duration, i32),
    /// After this long, by this signal.
    Signal(Duration, i32),
    /// After this long it hits its memory limit.
    OutOfMemory(Duration),
    /// It cannot be run at all, for this reason.
    CannotRun(String),
}

/// Something printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// When, after the start.
    pub after: Duration,
    /// Where.
    pub stream: Stream,
    /// What; with its newline, if it has one.
    pub bytes: Vec<u8>,
}

impl Behaviour {
    /// Runs until it is stopped.
    pub fn forever() -> Behaviour {
        Behaviour {
            ending: Ending::Never,
            ignores_signals: false,
            output: Vec::new(),
        }
    }

    /// Runs this long, then exits.
    pub fn exits(after: Duration, code: i32) -> Behaviour {
        Behaviour {
            ending: Ending::Exit(after, code),
            ..Behaviour::forever()
        }
    }

    /// Ends in this way.
    pub fn ends(ending: Ending) -> Behaviour {
        Behaviour {
            ending,
            ..Behaviour::forever()
        }
    }

    /// The same, but only SIGKILL ends it early.
    pub fn ignoring_signals(mut self) -> Behaviour {
        self.ignores_signals = true;
        self
    }

    /// The same, and prints this at that time.
    pub fn printing(mut self, after: Duration, stream: Stream, text: &str) -> Behaviour {
        self.output.push(Output {
            after,
            stream,
            bytes: text.as_bytes().to_vec(),
        });
        self.output.sort_by_key(|output| output.after);
        self
    }

    /// What the words of a command mean to [`crate::FakeRuntime::new`]: a few commands that everyone knows do what they
    /// do elsewhere, everything else runs until it is stopped.
    ///
    /// * `true`, `false`; `exit N`; `sleep SECONDS` (a fraction, or `infinity`); `echo WORDS…`
    /// * `fake KEY=VALUE…` with `run=SECONDS`, `exit=N`, `signal=N`, `oom=1`, `ignore-signals=1`, `cannot-run=REASON`,
    ///   `stdout=TEXT`, `stderr=TEXT`
    pub fn of(spec: &ContainerSpec) -> Behaviour {
        let words: Vec<&str> = spec.argv.iter().map(String::as_str).collect();
        let command = words.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word));
        match (command, &words[1.min(words.len())..]) {
            ("true", _) => Behaviour::exits(Duration::ZERO, 0),
            ("false", _) => Behaviour::exits(Duration::ZERO, 1),
            ("exit", [code, ..]) => Behaviour::exits(Duration::ZERO, code.parse().unwrap_or(0)),
            ("sleep", [time, ..]) => match seconds(time) {
                Some(time) => Behaviour::exits(time, 0),
                None => Behaviour::forever(),
            },
            ("echo", rest) => {
                let line = format!("{}\n", rest.join(" "));
                Behaviour::exits(Duration::ZERO, 0).printing(Duration::ZERO, Stream::Stdout, &line)
            }
            ("fake", rest) => Behaviour::of_pairs(rest),
            _ => Behaviour::forever(),
        }
    }

    fn of_pairs(words: &[&str]) -> Behaviour {
        let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| value(key).and_then(|text| text.parse::<i32>().ok());
        let run = value("run").and_then(seconds);
        let after = run.unwrap_or_default();
        let ending = match (value("cannot-run"), value("oom"), number("signal"), number("exit")) {
            (Some(reason), ..) => Ending::CannotRun(reason.to_owned()),
            (None, Some(_), ..) => Ending::OutOfMemory(after),
            (None, None, Some(signal), _) => Ending::Signal(after, signal),
            (None, None, None, Some(code)) => Ending::Exit(after, code),
            (None, None, None, None) if run.is_some() => Ending::Exit(after, 0),
            (None, None, None, None) => Ending::Never,
        };
        let mut behaviour = Behaviour::ends(ending);
        behaviour.ignores_signals = value("ignore-signals").is_some();
        for (key, stream) in [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)] {
            if let Some(text) = value(key) {
                behaviour = behaviour.printing(Duration::ZERO, stream, &format!("{text}\n"));
            }
        }
        behaviour
    }
}

/// A number of seconds; `None` is for ever.
fn seconds(text: &str) -> Option<Duration> {
    text.trim_end_matches('s')
        .parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
