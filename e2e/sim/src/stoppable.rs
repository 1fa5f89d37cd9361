//! The runtime, as a process sees it that may be stopped.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use muster_runtime::{
    Container, ContainerId, ContainerSpec, Error, Exec, Guard, Isolation, LogChunk, LogQuery, Runtime, Session, Stop,
};

use crate::gate::Gate;

/// See the module.
pub(crate) struct Stoppable {
    runtime: Arc<dyn Runtime>,
    gate: Gate,
}

impl Stoppable {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, gate: &Gate) -> Stoppable {
        Stoppable {
            runtime,
            gate: gate.clone(),
        }
    }
}

#[async_trait]
impl Runtime for Stoppable {
    fn isolation(&self) -> Isolation {
        self.runtime.isolation()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        self.gate.pass().await;
        self.runtime.list().await
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        self.gate.pass().await;
        self.runtime.create(id, spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.gate.pass().await;
        self.runtime.start(id).await
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        self.gate.pass().await;
        self.runtime.stop(id, stop).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        self.gate.pass().await;
        self.runtime.remove(id).await
    }

    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        self.gate.pass().await;
        self.runtime.logs(id, query).await
    }

    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        self.gate.pass().await;
        self.runtime.exec(id, exec).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.runtime.changes()
    }

    fn guard(&self) -> Option<&dyn Guard> {
        // It is told of answers of the API server, and a stopped process gets none.
        self.runtime.guard()
    }
}
