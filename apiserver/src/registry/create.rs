//! Making objects.

use muster_store::{Compare, LeaseId, Op, Revision};
use serde_json::{Value, json};

use super::admit::{Admission, Origin, encode};
use super::commit::{Guard, GuardedTxn, Outcome};
use super::owners::{self, Application, Note};
use super::{Context, Kind, Written, metadata};
use crate::accept;
use crate::body::Decoded;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::limits;
use crate::params::WriteParams;

/// A new object.
pub struct Create<'a> {
    /// Of which kind.
    pub kind: &'a Kind,
    /// Where; empty for kinds without namespaces.
    pub namespace: &'a str,
    /// What was sent.
    pub body: Decoded,
    /// How.
    pub params: &'a WriteParams,
    /// Whether it is applied: the writer owns what it says, and not what is filled in.
    pub applied: bool,
}

/// A new object, ready to be stored.
pub(crate) struct Prepared {
    /// Its stored form.
    pub(crate) object: Value,
    /// What the writer should know.
    pub(crate) warnings: Vec<String>,
    /// Whether its name was drawn.
    pub(crate) generated: bool,
}

impl Create<'_> {
    /// Completes the object; nothing is judged yet but its shape.
    pub(crate) fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let Create { kind, namespace, .. } = self;
        let mut object = self.body.value.clone();
        metadata::identify(kind, &mut object, namespace, "")?;
        if kind.resource.has_status() {
            object.as_object_mut().and_then(|object| object.remove("status"));
        }
        metadata::begin(&mut object, &*context.state.env, kind.counts_generations())?;
        let generated = metadata::generate_name(&mut object, &*context.state.env);
        let note = Note::new(context, kind, self.params, false);
        let applied = if self.applied {
            let application = Application {
                config: self.body.clone(),
                force: false,
            };
            Some(note.applied(&Value::Null, &json!({}), &application)?.1)
        } else {
            None
        };
        let warnings = self.admission().shape(&mut object, &self.body.duplicates, None)?;
        let owners = applied.unwrap_or_else(|| note.created(&object));
        let mut object = kind.store(object);
        kind.strategy.prepare_create(context, &mut object)?;
        metadata::drop_empty(&mut object);
        owners::put(&mut object, owners);
        Ok(Prepared {
            object,
            warnings,
            generated,
        })
    }

    /// The rules for this write.
    pub(crate) fn admission(&self) -> Admission<'_> {
        Admission {
            kind: self.kind,
            validation: self.params.validation,
            origin: Origin::Sent,
        }
    }

    /// Makes the object.
    pub async fn run(self, context: &Context<'_>) -> Result<Written> {
        let Prepared {
            mut object,
            warnings,
            generated,
        } = self.prepare(context)?;
        self.admission().judge(&object, None)?;
        if let Some(offer) = accept::offer_of(self.kind, &object) {
            let object = accept::launch(context, self.namespace, &offer, object, self.params).await?;
            return Ok(Written {
                object,
                warnings,
                deleted: false,
            });
        }
        let mut drawn = 1;
        for _ in 0..limits::WRITE_ATTEMPTS {
            match self.attempt(context, &object).await? {
                Attempt::Done(revision) => {
                    if let Some(revision) = revision {
                        object["metadata"]["resourceVersion"] = json!(revision.to_string());
                    }
                    let object = self.kind.show(object);
                    return Ok(Written {
                        object,
                        warnings,
                        deleted: false,
                    });
                }
                Attempt::Taken if generated && drawn < limits::NAME_ATTEMPTS => {
                    drawn += 1;
                    object["metadata"]["name"] = Value::Null;
                    metadata::generate_name(&mut object, &*context.state.env);
                }
                Attempt::Taken => {
                    let name = metadata::text(&object, "name");
                    return Err(ApiError::already_exists(&self.kind.resource, name));
                }
                Attempt::Again => (),
            }
        }
        Err(ApiError::too_many_requests(
            "the namespace changes too often; try again",
            1,
        ))
    }

    async fn attempt(&self, context: &Context<'_>, object: &Value) -> Result<Attempt> {
        let kind = self.kind;
        let key = keys::object(&kind.stored, self.namespace, metadata::text(object, "name"));
        let value = encode(kind, object)?;
        let mut txn = GuardedTxn::new();
        txn.compare(Compare::absent(key.clone()), Guard::Subject);
        guard_namespace(context, &mut txn, self.namespace)?;
        if let Some(fence) = context.fence {
            fence.guard(&mut txn);
        }
        kind.strategy.guard(context, &mut txn, None, Some(object))?;
        if let Some(agent) = kind.strategy.touches(None, Some(object)) {
            txn.touch(&agent);
        }
        if self.params.dry_run {
            let taken = context.hub().get(&key).is_some();
            return Ok(if taken { Attempt::Taken } else { Attempt::Done(None) });
        }
        let lease = match kind.strategy.lifetime(object) {
            None => None,
            Some(ttl) => Some(context.state.store.grant(ttl).await?),
        };
        txn.write(Op::Put { key, value, lease });
        let outcome = context.state.commit(txn).await;
        if !matches!(outcome, Ok(Outcome::Done(_))) {
            release(context, lease).await;
        }
        Ok(match outcome? {
            Outcome::Done(revision) => Attempt::Done(Some(revision)),
            Outcome::Lost(guards) if guards.contains(&Guard::Subject) => Attempt::Taken,
            Outcome::Lost(_) => Attempt::Again,
        })
    }
}

enum Attempt {
    /// It is stored at this revision; `None`: it would be.
    Done(Option<Revision>),
    /// The name is taken.
    Taken,
    /// Something moved; look again.
    Again,
}

/// A lease that nothing lives under ends by itself; this is sooner.
async fn release(context: &Context<'_>, lease: Option<LeaseId>) {
    if let Some(lease) = lease
        && let Err(error) = context.state.store.revoke(lease).await
    {
        tracing::debug!(%error, "an unused lease is left to end by itself");
    }
}

/// The transaction holds only while the namespace is there and not about to go. Kinds without namespaces have none to guard.
pub(crate) fn guard_namespace(context: &Context<'_>, txn: &mut GuardedTxn, namespace: &str) -> Result<()> {
    if namespace.is_empty() {
        return Ok(());
    }
    let key = keys::namespace(namespace);
    let Some(object) = context.hub().get(&key) else {
        let mut error = ApiError::absent(format!("namespaces \"{namespace}\" not found"));
        error.details.kind = "namespaces".to_owned();
        error.details.name = namespace.to_owned();
        return Err(error);
    };
    if !object.json()["metadata"]["deletionTimestamp"].is_null() {
        let message = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = format!("namespace {namespace} is being terminated");
        return Err(ApiError::forbidden(message).cause("NamespaceTerminating", cause, "metadata.namespace"));
    }
    txn.compare(Compare::modified(key, object.revision), Guard::Namespace);
    Ok(())
}
