//! The fake runtime's machine: programs become behaviours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_runtime::conformance::{Ability, Harness, NUMBERS, Program, number};
use muster_runtime::fake::{Behaviour, Ending};
use muster_runtime::{ContainerSpec, FakeRuntime, Limits, Rootfs, Runtime, Stream};
use tokio::time::Instant;

use crate::Cleans;

pub(crate) struct FakeMachine {
    fake: FakeRuntime,
}

impl FakeMachine {
    pub(crate) fn new() -> FakeMachine {
        let start = Instant::now();
        let fake = FakeRuntime::new(move || 1_700_000_000_000 + i64::try_from(start.elapsed().as_millis()).unwrap());
        fake.set_behaviours(|_, spec| behaviour(&spec.argv));
        FakeMachine { fake }
    }
}

fn behaviour(argv: &[String]) -> Behaviour {
    let now = Duration::ZERO;
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", code] => Behaviour::exits(now, code.parse().unwrap()),
        ["signal", signal] => Behaviour::ends(Ending::Signal(now, signal.parse().unwrap())),
        ["forever"] => Behaviour::forever(),
        ["ready"] => Behaviour::forever().printing(now, Stream::Stdout, "ready\n"),
        ["stubborn"] => Behaviour::forever()
            .ignoring_signals()
            .printing(now, Stream::Stdout, "ready\n"),
        ["print"] => Behaviour::exits(now, 0)
            .printing(now, Stream::Stdout, "out 1\n")
            .printing(now, Stream::Stdout, "out 2\n")
            .printing(now, Stream::Stderr, "err 1\n")
            .printing(now, Stream::Stdout, "out 3"),
        ["numbers"] => {
            let pause = Duration::from_millis(300);
            (0..NUMBERS).fold(Behaviour::exits(pause, 0), |behaviour, n| {
                behaviour.printing(if n < NUMBERS / 2 { now } else { pause }, Stream::Stdout, &number(n))
            })
        }
        ["missing"] => Behaviour::ends(Ending::CannotRun("missing: no such command".to_owned())),
        ["eat-memory"] => Behaviour::ends(Ending::OutOfMemory(now)),
        _ => panic!("no such program: {argv:?}"),
    }
}

impl Harness for FakeMachine {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.fake.clone())
    }

    fn spec(&self, program: Program) -> ContainerSpec {
        let command = match program {
            Program::Exit(code) => format!("exit {code}"),
            Program::Signal(signal) => format!("signal {signal}"),
            Program::Forever => "forever".to_owned(),
            Program::Stubborn => "stubborn".to_owned(),
            Program::Print => "print".to_owned(),
            Program::Numbers => "numbers".to_owned(),
            Program::Missing => "missing".to_owned(),
            Program::EatMemory => "eat-memory".to_owned(),
            Program::Orphans => "exit 0".to_owned(),
            Program::Cat => "cat".to_owned(),
            Program::Ready => "ready".to_owned(),
        };
        ContainerSpec {
            argv: command.split(' ').map(str::to_owned).collect(),
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
        }
    }

    fn processes(&self) -> usize {
        0
    }

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::LimitMemory => true,
        }
    }
}

impl Cleans for FakeMachine {
    async fn clean(&self) {}
    const PAUSED: bool = true;
}
