//! From actions to calls of the runtime.
//!
//! It promises: the actions of one task happen in order, and none after one that failed; every call has a deadline; a call whose time
//! ran out counts as unknown, so the caller lists again before it tries anything else.

use std::sync::Arc;
use std::time::Duration;

use muster_runtime::{Error, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::limits::RUNTIME_DEADLINE;
use crate::plan::Action;
use crate::volumes::{self, Make, Places};

/// What became of one action.
pub type Acted = (Action, Result<(), Error>);

/// Does the actions of one task, when `slots` has room.
pub async fn act(
    runtime: Arc<dyn Runtime>,
    places: Arc<Places>,
    slots: Arc<Semaphore>,
    actions: Vec<Action>,
) -> Vec<Acted> {
    let _slot = slots.acquire().await.expect("the semaphore is never closed");
    let mut done = Vec::with_capacity(actions.len());
    for action in actions {
        let answer = within(RUNTIME_DEADLINE, call(runtime.as_ref(), &places, &action)).await;
        let failed = answer.is_err();
        match &answer {
            Ok(()) => tracing::info!(container = %action.id(), verb = ?action.verb(), "done"),
            Err(error) => tracing::warn!(container = %action.id(), verb = ?action.verb(), %error, "failed"),
        }
        done.push((action, answer));
        if failed {
            break;
        }
    }
    done
}

async fn within(deadline: Duration, call: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let late = Error::Deadline {
        call: "a call",
        deadline,
    };
    timeout(deadline, call).await.unwrap_or(Err(late))
}

async fn call(runtime: &dyn Runtime, places: &Arc<Places>, action: &Action) -> Result<(), Error> {
    match action {
        Action::Create { id, spec, makes } if makes.is_empty() => runtime.create(id, spec).await,
        Action::Create { id, spec, makes } => {
            let created = match made(makes.clone()).await {
                Ok(()) => runtime.create(id, spec).await,
                Err(error) => Err(error),
            };
            // Nothing secret lies about while an image comes. What is not known to have failed may be in use.
            if matches!(&created, Err(error) if !matches!(error, Error::Deadline { .. })) {
                let (places, id) = (Arc::clone(places), id.clone());
                blocking(move || {
                    places.unmake(&id);
                    Ok(())
                })
                .await?;
            }
            created
        }
        Action::Start(id) => runtime.start(id).await,
        Action::Stop(id, stop) => runtime.stop(id, *stop).await,
        Action::Remove(id) => runtime.remove(id).await,
    }
}

async fn made(makes: Vec<Make>) -> Result<(), Error> {
    blocking(move || volumes::make(&makes)).await
}

async fn blocking(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| {
        Err(Error::System {
            context: "directories of a task".to_owned(),
            message: error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests {
    use muster_runtime::FakeRuntime;
    use muster_runtime::fake::{Call, Fault};

    use super::*;
    use crate::plan::testing::{Scene, id};

    fn slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_happens_after_an_action_that_failed() {
        let fake = FakeRuntime::new(|| 0);
        fake.fault_once(Call::Create, Fault::Hang);
        let mut actions: Vec<Action> = Scene::of(|_| {}).plan().actions.into_values().flatten().collect();
        actions.push(Action::Start(id("t", 1)));
        let done = act(Arc::new(fake.clone()), Arc::default(), slots(), actions.clone()).await;
        assert_eq!(done.len(), 1);
        assert!(matches!(done[0].1, Err(Error::Deadline { .. })));
        let done = act(Arc::new(fake.clone()), Arc::default(), slots(), actions).await;
        assert!(done.iter().all(|(_, answer)| answer.is_ok()));
        assert_eq!(fake.starts(&id("t", 1)), 1);
    }
}
