//! The machine behind the fake runtime: pure state and the passing of time.

mod usage;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::behaviour::{Behaviour, Ending};
use crate::limits::{LOG_BYTES_DEFAULT, LOG_BYTES_MIN, LOG_CHUNK_BYTES};
use crate::{
    Container, ContainerId, ContainerSpec, Error, Exit, FENCED, Fence, LogChunk, LogLine, LogPosition, LogQuery, State,
    Stop,
};

const SIGKILL: i32 = 9;

/// Something that happened on the fake machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    /// To which container.
    pub id: ContainerId,
    /// What.
    pub happening: Happening,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It was prepared.
    Created,
    /// Its command was run.
    Started,
    /// A signal was sent to it.
    Signalled(i32),
    /// It has ended.
    Exited(Exit),
    /// It was removed, or vanished.
    Removed,
}

/// All containers, and what has happened so far.
#[derive(Default)]
pub(super) struct Machine {
    containers: BTreeMap<ContainerId, Fake>,
    starts: BTreeMap<ContainerId, usize>,
    history: Vec<Event>,
    pids: u32,
    /// The times of the last [`Machine::settle`]: the present, for all that is done to the machine.
    present: Option<(Instant, i64)>,
    /// Up to when somebody vouches for containers with a fence.
    vouched: Option<Instant>,
}

struct Fake {
    spec: ContainerSpec,
    state: FakeState,
    log: Log,
}

enum FakeState {
    Created,
    Running(Running),
    Exited(Exit),
}

struct Running {
    pid: u32,
    started: Instant,
    started_ms: i64,
    behaviour: Behaviour,
    printed: usize,
    /// When the grace of a stop is over.
    kill_at: Option<Instant>,
    fence: Option<Fence>,
    /// Whether its fence has stopped it.
    fenced: bool,
}

/// Output that was not rotated away yet.
#[derive(Default)]
struct Log {
    lines: Vec<LogLine>,
    /// How many lines came before the first of `lines`.
    dropped: usize,
    bytes: u64,
}

/// What is due to happen next to one container.
enum Due {
    Output,
    Ending,
    Kill,
    Fence(Fence),
}

impl Running {
    fn due(&self, vouched: Option<Instant>) -> Option<(Instant, Due)> {
        let output = self
            .behaviour
            .output
            .get(self.printed)
            .map(|output| (self.started + output.after, Due::Output));
        let ending = self
            .behaviour
            .ending
            .after()
            .map(|after| (self.started + after, Due::Ending));
        let kill = self.kill_at.map(|at| (at, Due::Kill));
        // Of equal times the first stays: what was printed at the end is read before the end.
        let fence = self.fence.filter(|_| !self.fenced);
        let fence = fence.and_then(|fence| Some((vouched? + fence.after, Due::Fence(fence))));
        [output, ending, kill, fence]
            .into_iter()
            .flatten()
            .reduce(|first, next| if next.0 < first.0 { next } else { first })
    }
}

impl Ending {
    fn after(&self) -> Option<Duration> {
        match self {
            Ending::Never => None,
            Ending::Exit(after, _) | Ending::Signal(after, _) | Ending::OutOfMemory(after) => Some(*after),
            Ending::CannotRun(_) => Some(Duration::ZERO),
        }
    }

    fn exit(&self, started_ms: i64, finished_ms: i64) -> Exit {
        let exit = Exit {
            code: None,
            signal: None,
            oom_killed: false,
            started_ms: Some(started_ms),
            finished_ms,
            error: None,
        };
        match self {
            Ending::Never => Exit {
                signal: Some(SIGKILL),
                ..exit
            },
            Ending::Exit(_, code) => Exit {
                code: Some(*code),
                ..exit
            },
            Ending::Signal(_, signal) => Exit {
                signal: Some(*signal),
                ..exit
            },
            Ending::OutOfMemory(_) => Exit {
                signal: Some(SIGKILL),
                oom_killed: true,
                ..exit
            },
            Ending::CannotRun(reason) => Exit {
                error: Some(reason.clone()),
                started_ms: None,
                ..exit
            },
        }
    }
}

impl Machine {
    /// Lets everything happen that is due by now, in the order of the times it was due at.
    pub(super) fn settle(&mut self, now: Instant, wall_ms: i64) {
        self.present = Some((now, wall_ms));
        while let Some((at, id)) = self.earliest().filter(|(at, _)| *at <= now) {
            let ago_ms = i64::try_from((now - at).as_millis()).unwrap_or(i64::MAX);
            self.happen(&id, at, wall_ms.saturating_sub(ago_ms));
        }
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.earliest().map(|(at, _)| at)
    }

    fn earliest(&self) -> Option<(Instant, ContainerId)> {
        let due = self.containers.iter().filter_map(|(id, fake)| match &fake.state {
            FakeState::Running(running) => running.due(self.vouched).map(|(at, _)| (at, id)),
            FakeState::Created | FakeState::Exited(_) => None,
        });
        due.min().map(|(at, id)| (at, id.clone()))
    }

    /// The next thing that is due for this container happens.
    fn happen(&mut self, id: &ContainerId, at: Instant, wall_ms: i64) {
        let vouched = self.vouched;
        let Some(fake) = self.containers.get_mut(id) else {
            return;
        };
        let FakeState::Running(running) = &mut fake.state else {
            return;
        };
        let exit = match running.due(vouched) {
            None => return,
            Some((_, Due::Output)) => {
                let output = &running.behaviour.output[running.printed];
                let line = LogLine {
                    time_ms: wall_ms,
                    stream: output.stream,
                    bytes: output.bytes.clone(),
                };
                fake.log.push(line, fake.spec.limits.log_bytes);
                running.printed += 1;
                return;
            }
            Some((_, Due::Ending)) => running.behaviour.ending.exit(running.started_ms, wall_ms),
            Some((_, Due::Kill)) => Ending::Never.exit(running.started_ms, wall_ms),
            Some((_, Due::Fence(fence))) => {
                running.fenced = true;
                if running.behaviour.ignores_signals && fence.signal != SIGKILL {
                    let kill_at = at + fence.grace;
                    running.kill_at = Some(running.kill_at.map_or(kill_at, |at| at.min(kill_at)));
                    return;
                }
                Ending::Signal(Duration::ZERO, fence.signal).exit(running.started_ms, wall_ms)
            }
        };
        let error = running.fenced.then(|| FENCED.to_owned()).or(exit.error);
        self.finish(id, Exit { error, ..exit });
    }

    fn finish(&mut self, id: &ContainerId, exit: Exit) {
        if let Some(fake) = self.containers.get_mut(id) {
            fake.state = FakeState::Exited(exit.clone());
            self.history.push(Event {
                time_ms: exit.finished_ms,
                id: id.clone(),
                happening: Happening::Exited(exit),
            });
        }
    }

    fn remember(&mut self, id: &ContainerId, happening: Happening) {
        let time_ms = self.wall_ms();
        self.history.push(Event {
            time_ms,
            id: id.clone(),
            happening,
        });
    }

    fn now(&self) -> Instant {
        self.present
            .expect("the machine settles before anything is done to it")
            .0
    }

    fn wall_ms(&self) -> i64 {
        self.present
            .expect("the machine settles before anything is done to it")
            .1
    }

    fn fake(&self, id: &ContainerId) -> Result<&Fake, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(id.clone()))
    }

    pub(super) fn list(&self) -> Vec<Container> {
        let container = |(id, fake): (&ContainerId, &Fake)| Container {
            id: id.clone(),
            labels: fake.spec.labels.clone().into_iter().collect(),
            state: match &fake.state {
                FakeState::Created => State::Created,
                FakeState::Running(running) => State::Running {
                    pid: running.pid,
                    started_ms: running.started_ms,
                },
                FakeState::Exited(exit) => State::Exited(exit.clone()),
            },
        };
        self.containers.iter().map(container).collect()
    }

    pub(super) fn create(&mut self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        spec.check()?;
        match self.containers.get(id) {
            Some(fake) if fake.spec == *spec => return Ok(()),
            Some(_) => return Err(Error::Conflict(id.clone())),
            None => {}
        }
        if spec.limits.fence.is_some() && self.vouched.is_none() {
            return Err(Error::System {
                context: "creating the container".to_owned(),
                message: "nobody vouches for containers with a fence".to_owned(),
            });
        }
        let fake = Fake {
            spec: spec.clone(),
            state: FakeState::Created,
            log: Log::default(),
        };
        self.containers.insert(id.clone(), fake);
        self.remember(id, Happening::Created);
        Ok(())
    }

    pub(super) fn start(
        &mut self,
        id: &ContainerId,
        behaviour: impl FnOnce(&ContainerSpec) -> Behaviour,
    ) -> Result<(), Error> {
        let fake = self.fake(id)?;
        if !matches!(fake.state, FakeState::Created) {
            return Ok(());
        }
        let (behaviour, fence) = (behaviour(&fake.spec), fake.spec.limits.fence);
        let (now, wall_ms) = (self.now(), self.wall_ms());
        self.pids += 1;
        let running = Running {
            pid: self.pids,
            started: now,
            started_ms: wall_ms,
            behaviour,
            printed: 0,
            kill_at: None,
            fence,
            fenced: false,
        };
        if let Some(fake) = self.containers.get_mut(id) {
            fake.state = FakeState::Running(running);
        }
        *self.starts.entry(id.clone()).or_default() += 1;
        self.remember(id, Happening::Started);
        Ok(())
    }

    pub(super) fn stop(&mut self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        let (now, wall_ms) = (self.now(), self.wall_ms());
        let fake = self.containers.get_mut(id).ok_or_else(|| Error::NotFound(id.clone()))?;
        let exit = match &mut fake.state {
            FakeState::Exited(_) => return Ok(()),
            FakeState::Created => Some(Exit::never_ran(wall_ms, "stopped before it was started")),
            FakeState::Running(running) => {
                let kill_at = now + stop.grace;
                running.kill_at = Some(running.kill_at.map_or(kill_at, |at| at.min(kill_at)));
                let ends = stop.signal == SIGKILL || !running.behaviour.ignores_signals;
                ends.then(|| Ending::Signal(Duration::ZERO, stop.signal).exit(running.started_ms, wall_ms))
            }
        };
        self.remember(id, Happening::Signalled(stop.signal));
        if let Some(exit) = exit {
            self.finish(id, exit);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &ContainerId) -> Result<(), Error> {
        match self.containers.get(id).map(|fake| &fake.state) {
            None => Ok(()),
            Some(FakeState::Exited(_)) => {
                self.vanish(id);
                Ok(())
            }
            Some(FakeState::Created | FakeState::Running(_)) => Err(Error::Running(id.clone())),
        }
    }

    pub(super) fn vanish(&mut self, id: &ContainerId) {
        if self.containers.remove(id).is_some() {
            self.remember(id, Happening::Removed);
        }
    }

    /// Ends a running container; the closure makes the exit from when it was started and now.
    pub(super) fn end(&mut self, id: &ContainerId, exit: impl FnOnce(i64, i64) -> Exit) {
        let wall_ms = self.wall_ms();
        let Some(Fake {
            state: FakeState::Running(running),
            ..
        }) = self.containers.get(id)
        else {
            return;
        };
        let exit = exit(running.started_ms, wall_ms);
        self.finish(id, exit);
    }

    pub(super) fn reboot(&mut self) {
        let wall_ms = self.wall_ms();
        let lost = |fake: &Fake| {
            let started_ms = match &fake.state {
                FakeState::Exited(_) => return None,
                FakeState::Created => None,
                FakeState::Running(running) => Some(running.started_ms),
            };
            Some(Exit {
                started_ms,
                ..Exit::never_ran(wall_ms, "lost: the machine was restarted")
            })
        };
        let exits: Vec<_> = self
            .containers
            .iter()
            .filter_map(|(id, fake)| Some((id.clone(), lost(fake)?)))
            .collect();
        for (id, exit) in exits {
            self.finish(&id, exit);
        }
    }

    /// Somebody vouches up to then.
    pub(super) fn vouch(&mut self, at: Instant) {
        self.vouched = self.vouched.max(Some(at));
    }

    /// What a container is made from, and whether it runs.
    pub(super) fn inside(&self, id: &ContainerId) -> Option<(&ContainerSpec, bool)> {
        let fake = self.containers.get(id)?;
        Some((&fake.spec, matches!(fake.state, FakeState::Running(_))))
    }

    /// How often the command of a container was run.
    pub(super) fn starts(&self, id: &ContainerId) -> usize {
        self.starts.get(id).copied().unwrap_or(0)
    }

    pub(super) fn history(&self) -> &[Event] {
        &self.history
    }

    pub(super) fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        let fake = self.fake(id)?;
        fake.log.read(query, matches!(fake.state, FakeState::Exited(_)))
    }
}

impl Log {
    /// Adds a line. The bytes kept are those of a full file and the one being filled: twice the limit.
    fn push(&mut self, line: LogLine, limit: u64) {
        let limit = if limit == 0 {
            LOG_BYTES_DEFAULT
        } else {
            limit.max(LOG_BYTES_MIN)
        };
        self.bytes += line.bytes.len() as u64;
        self.lines.push(line);
        while self.bytes > 2 * limit {
            let oldest = self.lines.remove(0);
            self.bytes -= oldest.bytes.len() as u64;
            self.dropped += 1;
        }
    }

    fn read(&self, query: &LogQuery, exited: bool) -> Result<LogChunk, Error> {
        let end = self.dropped + self.lines.len();
        let first = match (&query.after, query.tail) {
            (Some(LogPosition(text)), _) => {
                let position = text
                    .parse::<usize>()
                    .map_err(|_| Error::Invalid(format!("log position {text:?}")))?;
                position.clamp(self.dropped, end)
            }
            (None, Some(tail)) => end.saturating_sub(tail).max(self.dropped),
            (None, None) => self.dropped,
        };
        let (mut lines, mut bytes, mut position) = (Vec::new(), 0, first);
        for line in &self.lines[first - self.dropped..] {
            if bytes > 0 && bytes + line.bytes.len() > LOG_CHUNK_BYTES {
                break;
            }
            position += 1;
            if query.since_ms.is_none_or(|since_ms| line.time_ms >= since_ms) {
                bytes += line.bytes.len();
                lines.push(line.clone());
            }
        }
        Ok(LogChunk {
            lines,
            position: LogPosition(position.to_string()),
            end: exited && position == end,
        })
    }
}
