//! What happens to definitions without anybody asking: names that were freed are given, and what is being deleted goes when its objects
//! are gone.
//!
//! Every server does this; what two of them do at once is compared by the transactions, so that one of them does it. It keeps nothing in
//! memory: it looks at what the hub shows, whenever that has changed.

use std::sync::Weak;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::{DEFINITIONS, FINALIZER, holds};
use crate::auth::User;
use crate::error::Result;
use crate::hub::{Filter, Object, Part};
use crate::params::{DeleteParams, WriteParams};
use crate::patch::Patch;
use crate::registry::{Change, Context, Update};
use crate::state::State;

/// When to look again at what could not be finished.
const RETRY: Duration = Duration::from_millis(100);
/// Objects may be held by finalizers for as long as somebody likes; then a look at all of them every so often is enough.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks after definitions, until the server ends.
pub(crate) async fn run(state: Weak<State>) {
    loop {
        let Some(strong) = state.upgrade() else { return };
        let Some(id) = strong.resources.stored(DEFINITIONS).map(|kind| kind.id) else {
            return;
        };
        let (mut definitions, mut anything) = (strong.hub.touched(id), strong.hub.reached());
        let found = strong.hub.list(id, &Filter::all(None), &Part::default());
        let mut waiting = false;
        for definition in &found.objects {
            waiting |= !look_after(&strong, definition).await.unwrap_or_else(|error| {
                tracing::warn!(definition = definition.name(), %error, "the definition is as it was");
                false
            });
        }
        drop(strong);
        if waiting {
            tokio::time::sleep(RETRY).await;
            // What holds it goes with a write; a store that could not answer may answer later.
            _ = tokio::time::timeout(PATIENCE, anything.changed()).await;
        } else {
            _ = definitions.changed().await;
        }
    }
}

/// Does what is to be done about a definition. Whether nothing is left to do.
async fn look_after(state: &State, object: &Object) -> Result<bool> {
    let definition = object.json();
    let user = User::admin();
    let context = Context::new(state, &user, None);
    if !definition["metadata"]["deletionTimestamp"].is_null() {
        return empty(&context, object, &definition).await;
    }
    if !holds(&definition, "NamesAccepted") {
        // The status is derived with every write; one that changes nothing is not written.
        change(&context, object.name(), true, json!({})).await?;
    }
    Ok(true)
}

/// Deletes the objects of a kind whose definition is being deleted, and lets go of that when they are gone. Whether they are.
async fn empty(context: &Context<'_>, object: &Object, definition: &Value) -> Result<bool> {
    let mut left = 0;
    if let Some(kind) = context.state.resources.stored(object.name()) {
        let found = context.hub().list(kind.id, &Filter::all(None), &Part::default());
        for object in found.objects {
            let deleted = kind
                .delete(context, object.namespace(), object.name(), &DeleteParams::default())
                .await;
            match deleted {
                Ok(written) if written.deleted => (),
                Ok(_) => left += 1,
                Err(error) if error.code == StatusCode::NOT_FOUND => (),
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
        return Ok(false);
    }
    let finalizers = definition["metadata"]["finalizers"].as_array().into_iter().flatten();
    let others: Vec<&Value> = finalizers.filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": others, "uid": definition["metadata"]["uid"]}});
    match change(context, object.name(), false, patch).await {
        Err(error) if error.code != StatusCode::NOT_FOUND => Err(error),
        _ => Ok(true),
    }
}

async fn change(context: &Context<'_>, name: &str, status: bool, patch: Value) -> Result<()> {
    let kind = context
        .state
        .resources
        .stored(DEFINITIONS)
        .expect("whoever looks after definitions knows the kind");
    let update = Update {
        kind: &kind,
        namespace: "",
        name,
        status,
        change: Change::Patch(Patch::Merge(patch, Vec::new())),
        params: &WriteParams::default(),
    };
    update.run(context).await.map(|_| ())
}
