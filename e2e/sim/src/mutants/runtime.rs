//! Bugs of agents in how they name containers and what they make of them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use async_trait::async_trait;
use futures::stream::BoxStream;
use muster_agentd::spec::LABEL_ATTEMPT;
use muster_runtime::{
    Container, ContainerId, ContainerSpec, Error, Exec, Exit, FakeRuntime, Guard, Isolation, LogChunk, LogQuery,
    Runtime, Session, State, Stop,
};

use super::Mutant;

/// The runtime as an agent with a planted bug uses it.
pub struct MutantRuntime {
    runtime: FakeRuntime,
    mutant: Mutant,
    stopped: Mutex<BTreeSet<ContainerId>>,
}

impl MutantRuntime {
    /// The runtime as the mutant uses it.
    pub fn new(runtime: FakeRuntime, mutant: Mutant) -> MutantRuntime {
        MutantRuntime {
            runtime,
            mutant,
            stopped: Mutex::default(),
        }
    }

    /// The container that is meant.
    fn real(&self, id: &ContainerId) -> ContainerId {
        let first = id.as_str().rsplit_once('-').map(|(uid, _)| format!("{uid}-1"));
        let first = first.and_then(ContainerId::new);
        match self.mutant {
            Mutant::AttemptReused => first.unwrap_or_else(|| id.clone()),
            _ => id.clone(),
        }
    }

    fn shown(&self, mut container: Container) -> Option<Container> {
        let stopped = || {
            self.stopped
                .lock()
                .expect("no one panics with the list")
                .contains(&container.id)
        };
        match self.mutant {
            Mutant::AttemptReused => {
                let attempt = container.labels.get(LABEL_ATTEMPT).map(str::to_owned);
                let uid = container.id.as_str().rsplit_once('-').map(|(uid, _)| uid.to_owned());
                if let (Some(attempt), Some(uid)) = (attempt, uid) {
                    container.id = ContainerId::new(format!("{uid}-{attempt}"))?;
                }
            }
            Mutant::EndedTooSoon if stopped() => {
                if let State::Running { started_ms, .. } = container.state {
                    container.state = State::Exited(Exit {
                        code: None,
                        signal: Some(15),
                        oom_killed: false,
                        started_ms: Some(started_ms),
                        finished_ms: started_ms,
                        error: None,
                    });
                }
            }
            Mutant::LetGoTooSoon if matches!(container.state, State::Exited(_)) => return None,
            _ => {}
        }
        Some(container)
    }
}

#[async_trait]
impl Runtime for MutantRuntime {
    fn isolation(&self) -> Isolation {
        self.runtime.isolation()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        let containers = self.runtime.list().await?;
        Ok(containers
            .into_iter()
            .filter_map(|container| self.shown(container))
            .collect())
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        let real = self.real(id);
        if real != *id {
            self.runtime.remove(&real).await?;
        }
        self.runtime.create(&real, spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.runtime.start(&self.real(id)).await
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        self.stopped
            .lock()
            .expect("no one panics with the list")
            .insert(id.clone());
        self.runtime.stop(&self.real(id), stop).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        self.runtime.remove(&self.real(id)).await
    }

    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        self.runtime.logs(&self.real(id), query).await
    }

    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        self.runtime.exec(&self.real(id), exec).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.runtime.changes()
    }

    fn guard(&self) -> Option<&dyn Guard> {
        self.runtime.guard()
    }
}
