//! Taking objects away: at once, or when the last finalizer is gone.

use muster_api::names;
use muster_store::{Compare, Op};
use serde_json::{Value, json};

use super::admit::encode;
use super::commit::{Guard, GuardedTxn, Outcome};
use super::update::decode;
use super::{Context, Kind, Written, metadata};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::limits;
use crate::params::{DeleteParams, Propagation};

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
        let asked = params.propagation.filter(|_| self.strategy.may_own(&old));
        let finalizers = finalizers(&old, asked);
        let held = !finalizers.is_empty() || self.strategy.holds_deletion(&old);
        object["metadata"]["finalizers"] = json!(finalizers);
        metadata::drop_empty(&mut object);
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
            self.strategy.guard(context, &mut txn, Some(&old), new)?;
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

/// The finalizers of an object after its deletion was asked for: those of garbage collection as `asked`, the others as they were.
fn finalizers(old: &Value, asked: Option<Propagation>) -> Vec<Value> {
    let known = old["metadata"]["finalizers"].as_array().into_iter().flatten().cloned();
    let Some(asked) = asked else {
        return known.collect();
    };
    let others = known.filter(|name| *name != names::FINALIZER_FOREGROUND && *name != names::FINALIZER_ORPHAN);
    let added = match asked {
        Propagation::Foreground => Some(names::FINALIZER_FOREGROUND),
        Propagation::Background => None,
        Propagation::Orphan => Some(names::FINALIZER_ORPHAN),
    };
    others.chain(added.map(Value::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_deletion_is_kept_in_the_finalizers() {
        let check = |before: Value, asked, expect: Value| {
            let object = json!({"metadata": {"finalizers": before}});
            assert_eq!(json!(finalizers(&object, asked)), expect, "{before} {asked:?}");
        };
        let (foreground, orphan) = (Some(Propagation::Foreground), Some(Propagation::Orphan));
        check(json!(null), None, json!([]));
        check(json!(["a/b"]), Some(Propagation::Background), json!(["a/b"]));
        check(json!(["a/b"]), foreground, json!(["a/b", "foregroundDeletion"]));
        check(json!(["foregroundDeletion", "a/b"]), orphan, json!(["a/b", "orphan"]));
        check(json!(["foregroundDeletion"]), None, json!(["foregroundDeletion"]));
        check(json!(["orphan"]), Some(Propagation::Background), json!([]));
        check(json!(["foregroundDeletion"]), foreground, json!(["foregroundDeletion"]));
    }
}
