//! Taking objects away: at once, or when the last finalizer is gone.

use muster_store::{Compare, Op};
use serde_json::{Value, json};

use super::admit::encode;
use super::commit::{Guard, GuardedTxn, Outcome};
use super::update::decode;
use super::{Context, Kind, Written, metadata};
use crate::auth::User;
use crate::error::{ApiError, Result};
use crate::hub::{Filter, Part};
use crate::keys;
use crate::limits;
use crate::params::DeleteParams;
use crate::state::State;

impl Kind {
    /// Deletes an object, or marks it for deletion while something holds it.
    pub async fn delete(
        &self,
        context: &Context<'_>,
        namespace: &str,
        name: &str,
        params: &DeleteParams,
    ) -> Result<Written> {
        for _ in 0..limits::WRITE_ATTEMPTS {
            if let Some(written) = self.try_delete(context, namespace, name, params).await? {
                return Ok(written);
            }
        }
        Err(ApiError::too_many_requests(
            "the object changes too often; try again",
            1,
        ))
    }

    async fn try_delete(
        &self,
        context: &Context<'_>,
        namespace: &str,
        name: &str,
        params: &DeleteParams,
    ) -> Result<Option<Written>> {
        let key = keys::object(&self.stored, namespace, name);
        let entry = context.state.store.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found(&self.resource, name))?;
        let old = decode(&entry)?;
        self.check_preconditions(&old, name, params)?;
        self.strategy.prepare_delete(context, &old)?;
        let mut object = old.clone();
        let held = !metadata::finalizers(&old).is_empty() || self.strategy.holds_deletion(&old);
        if held && old["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(metadata::seconds(context.now));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            if let Some(generation) = old["metadata"]["generation"].as_i64() {
                object["metadata"]["generation"] = json!(generation + 1);
            }
            self.strategy.mark_deleted(&mut object);
        }
        let mut txn = GuardedTxn::new();
        txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
        if let Some(fence) = context.fence {
            fence.guard(&mut txn);
        }
        let unchanged = held && object == old;
        if !unchanged {
            let new = held.then_some(&object);
            if let Some(agent) = self.strategy.touches(Some(&old), new) {
                txn.touch(&agent);
            }
            txn.write(if held {
                let (value, lease) = (encode(self, &object)?, entry.lease);
                Op::Put { key, value, lease }
            } else {
                Op::delete(key)
            });
        }
        let skip = params.dry_run || (unchanged && context.fence.is_none());
        if !skip {
            match context.state.commit(txn).await? {
                Outcome::Done(revision) if !unchanged => {
                    object["metadata"]["resourceVersion"] = json!(revision.to_string());
                    if let Some(lease) = entry.lease.filter(|_| !held) {
                        // Its only key is gone; what is left of it is a clock.
                        context.state.store.revoke(lease).await?;
                    }
                }
                Outcome::Done(_) => (),
                Outcome::Lost(_) => return Ok(None),
            }
        }
        Ok(Some(Written {
            object: self.show(object),
            warnings: Vec::new(),
            deleted: !held,
        }))
    }

    fn check_preconditions(&self, old: &Value, name: &str, params: &DeleteParams) -> Result<()> {
        let checks = [
            ("UID", &params.uid, "uid"),
            ("ResourceVersion", &params.resource_version, "resourceVersion"),
        ];
        for (title, wanted, field) in checks {
            let found = metadata::text(old, field);
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
                let why = format!(
                    "the {title} in the precondition ({wanted}) does not match the {title} in record ({found})"
                );
                return Err(ApiError::conflict(&self.resource, name, why));
            }
        }
        Ok(())
    }
}

/// Deletes what is in a namespace that is being deleted, and then the namespace. Whether it is gone.
pub async fn purge(state: &State, namespace: &str) -> Result<bool> {
    let user = User::admin();
    let context = Context::new(state, &user, None);
    let mut left = 0;
    for kind in state.resources.kinds() {
        if !kind.resource.namespaced || kind.view != super::View::Stored {
            continue;
        }
        let found = state.hub.list(kind.id, &Filter::all(Some(namespace)), &Part::default());
        for object in found.objects {
            let deleted = kind
                .delete(&context, namespace, object.name(), &DeleteParams::default())
                .await;
            match deleted {
                Ok(written) if written.deleted => (),
                Ok(_) => left += 1,
                Err(error) if error.code == http::StatusCode::NOT_FOUND => (),
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
        return Ok(false);
    }
    super::namespace::finish(&context, namespace).await
}
