//! Accepting offers, with the store.

use http::StatusCode;
use muster_api::Time;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Offer, Task, TaskReason, TaskStatus};
use muster_api::wire::{AcceptRequest, AcceptResult};
use muster_store::{Compare, Entry, Key, Op, Revision};
use serde_json::{Value, json};

use super::place::{Asked, Offered, Placed, accept};
use super::request::{check_size, refuse};
use crate::body::Decoded;
use crate::error::{ApiError, Result};
use crate::hub::{self, Filter, Part};
use crate::keys;
use crate::limits;
use crate::params::WriteParams;
use crate::registry::{Context, Create, Guard, GuardedTxn, Kind, Outcome, guard_namespace, set_status};
use crate::schema::typed;

/// Annotation: the idempotency key of the call that bound the task.
const ANNOTATION_KEY: &str = "muster.dev/accept-key";
/// Annotation: the place of the task in that call.
const ANNOTATION_PLACE: &str = "muster.dev/accept-place";
/// How often an accept is tried again when something it read has moved.
const ATTEMPTS: usize = 8;

/// The offer that a new task names, if it is a task and names one.
pub(crate) fn offer_of(kind: &Kind, object: &Value) -> Option<String> {
    let is_task = kind.resource.qualified() == "tasks.muster.dev";
    object["spec"]["offer"].as_str().filter(|_| is_task).map(str::to_owned)
}

/// A task of the call.
struct Item {
    key: Key,
    object: Value,
    /// The revision of the pending task; `None`: it is new.
    revision: Option<Revision>,
}

struct Call<'a> {
    context: &'a Context<'a>,
    tasks: &'a Kind,
    namespace: &'a str,
    name: &'a str,
    params: &'a WriteParams,
}

/// Accepts an offer for a task that is just being created.
pub(crate) async fn launch(
    context: &Context<'_>,
    namespace: &str,
    offer: &str,
    object: Value,
    params: &WriteParams,
) -> Result<Value> {
    let tasks = context.state.resources.muster("tasks");
    let call = Call {
        context,
        tasks,
        namespace,
        name: offer,
        params,
    };
    for _ in 0..ATTEMPTS {
        let offers = call.offers(&[]).await?;
        let items = vec![call.item(object.clone())];
        if let Some((mut items, revision)) = call.attempt(&offers, items, None).await? {
            let mut object = items.pop().map(|item| item.object).unwrap_or_default();
            if !params.dry_run {
                object["metadata"]["resourceVersion"] = json!(revision.to_string());
            }
            return Ok(object);
        }
    }
    Err(call.contended())
}

/// Accepts offers as a request says.
pub(crate) async fn run(
    context: &Context<'_>,
    namespace: &str,
    name: &str,
    request: &AcceptRequest,
    params: &WriteParams,
) -> Result<AcceptResult> {
    check_size(name, request)?;
    let tasks = context.state.resources.muster("tasks");
    let call = Call {
        context,
        tasks,
        namespace,
        name,
        params,
    };
    let mut new = None;
    for attempt in 0..ATTEMPTS {
        if let Some(result) = call.done_before(request).await? {
            return Ok(result);
        }
        let offers = match call.offers(&request.offers).await {
            Ok(offers) => offers,
            Err(error) => {
                // It has gone since it was looked for: perhaps by this very call, whose first try is under way still.
                if error.code == StatusCode::NOT_FOUND
                    && let Some(result) = call.done_before(request).await?
                {
                    return Ok(result);
                }
                return Err(lost_race(error, attempt));
            }
        };
        let launched = match &new {
            Some(launched) => launched,
            None => new.insert(call.launched(request, &offers)?),
        };
        let mut items: Vec<Item> = launched.iter().map(|object| call.item(object.clone())).collect();
        items.extend(call.pending(&request.bind).await?);
        let key = request.idempotency_key.as_deref();
        if let Some((items, revision)) = call.attempt(&offers, items, key).await? {
            let names = items
                .iter()
                .map(|item| item.object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            return Ok(AcceptResult {
                tasks: names.collect(),
                resource_version: if params.dry_run {
                    String::new()
                } else {
                    revision.to_string()
                },
            });
        }
    }
    Err(call.contended())
}

/// What was there when the call began and is not any more was taken by somebody else.
fn lost_race(error: ApiError, attempt: usize) -> ApiError {
    if attempt == 0 || error.code != StatusCode::NOT_FOUND {
        return error;
    }
    let message = format!(
        "{}: it was accepted, declined or taken back at the same time",
        error.message
    );
    ApiError {
        code: StatusCode::CONFLICT,
        reason: "Conflict",
        message,
        details: error.details,
    }
}

impl Call<'_> {
    fn contended(&self) -> ApiError {
        let offers = &self.context.state.resources.muster("offers").resource;
        ApiError::conflict(offers, self.name, "what it involves changes too often; try again")
    }

    fn item(&self, object: Value) -> Item {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        Item {
            key: keys::object(&self.tasks.stored, self.namespace, name),
            object,
            revision: None,
        }
    }

    /// The offers, the one of the path first.
    async fn offers(&self, more: &[String]) -> Result<Vec<(Entry, Offered)>> {
        let resource = &self.context.state.resources.muster("offers").resource;
        let mut offers = Vec::new();
        for name in std::iter::once(self.name).chain(more.iter().map(String::as_str)) {
            let key = keys::object(resource, self.namespace, name);
            let entry = self.context.state.store.get(&key).await?;
            let entry = entry.ok_or_else(|| ApiError::not_found(resource, name))?;
            let offer: Offer = serde_json::from_slice(&entry.value)
                .map_err(|error| ApiError::internal(format!("the offer {name} cannot be read: {error}")))?;
            let name = name.to_owned();
            offers.push((entry, Offered { name, offer }));
        }
        Ok(offers)
    }

    /// The new tasks, complete and checked; an impossible wish for GPUs is left for later. One that names no framework or no role
    /// is of the offer's.
    fn launched(&self, request: &AcceptRequest, offers: &[(Entry, Offered)]) -> Result<Vec<Value>> {
        let mut objects: Vec<Value> = Vec::new();
        for (index, body) in request.launch.iter().enumerate() {
            let place = format!("launch[{index}]");
            let mut body = Decoded {
                value: body.clone(),
                duplicates: Vec::new(),
            };
            if let (Some((_, offered)), Some(Value::Object(spec))) = (offers.first(), body.value.get_mut("spec")) {
                let of = &offered.offer.spec;
                spec.entry("framework").or_insert_with(|| json!(of.framework));
                spec.entry("role").or_insert_with(|| json!(of.role));
            }
            if !body.value.is_object() {
                return Err(refuse(self.name, &place, "Invalid value: must be a task".to_owned()));
            }
            let create = Create {
                kind: self.tasks,
                namespace: self.namespace,
                body,
                params: self.params,
                applied: false,
            };
            let prepared = create.prepare(self.context).map_err(|error| at(&place, error))?;
            match create.admission().judge(&prepared.object, None) {
                Err(error) if !only_gpus(&error) => return Err(at(&place, error)),
                _ => (),
            }
            let name = &prepared.object["metadata"]["name"];
            if objects.iter().any(|known| known["metadata"]["name"] == *name) {
                return Err(refuse(
                    self.name,
                    &format!("{place}.metadata.name"),
                    format!("Duplicate value: {name}"),
                ));
            }
            objects.push(prepared.object);
        }
        Ok(objects)
    }

    async fn pending(&self, names: &[String]) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let key = keys::object(&self.tasks.stored, self.namespace, name);
            let Some(entry) = self.context.state.store.get(&key).await? else {
                let message = format!("Invalid value: \"{name}\": there is no such task");
                return Err(refuse(self.name, &format!("bind[{index}]"), message));
            };
            let object = serde_json::from_slice(&entry.value)
                .map_err(|error| ApiError::internal(format!("the task {name} cannot be read: {error}")))?;
            items.push(Item {
                key,
                object,
                revision: Some(entry.mod_revision),
            });
        }
        Ok(items)
    }

    /// One try; `None`: something that was read has moved.
    async fn attempt(
        &self,
        offers: &[(Entry, Offered)],
        mut items: Vec<Item>,
        idempotency_key: Option<&str>,
    ) -> Result<Option<(Vec<Item>, Revision)>> {
        let state = self.context.state;
        let offered: Vec<Offered> = offers.iter().map(|(_, offered)| offered.clone()).collect();
        let asked = items.iter().enumerate().map(|(index, item)| ask(index, item, &items));
        let asked = asked.collect::<Result<Vec<Asked>>>()?;
        let placed = accept(&offered, &asked, self.context.now)?;
        let agent = &offered[0].offer.spec.agent;
        let lease_key = keys::lease(names::NAMESPACE_AGENTS, agent);
        let agent_key = keys::object(&state.resources.muster("agents").resource, "", agent);
        let lease = self
            .there(&lease_key, || format!("agent {agent} cannot be reached now"))
            .await?;
        let present = self.there(&agent_key, || format!("agent {agent} was removed")).await?;
        let mut txn = GuardedTxn::new();
        for (entry, offered) in offers {
            let guard = Guard::Other(format!("offers/{}", offered.name));
            txn.compare(Compare::modified(entry.key.clone(), entry.mod_revision), guard);
            txn.write(Op::delete(entry.key.clone()));
        }
        txn.compare(
            Compare::created(lease_key, lease.create_revision),
            Guard::Other("presence".to_owned()),
        );
        txn.compare(
            Compare::created(agent_key, present.create_revision),
            Guard::Other("agent".to_owned()),
        );
        guard_namespace(self.context, &mut txn, self.namespace)?;
        if let Some(fence) = self.context.fence {
            fence.guard(&mut txn);
        }
        for (index, (item, placed)) in items.iter_mut().zip(placed).enumerate() {
            let call = idempotency_key.map(|key| (key, index));
            self.bind(&mut item.object, placed, (agent, offers[0].0.mod_revision), call);
            let value = self.encode(&item.object)?;
            let (compare, guard) = match item.revision {
                Some(revision) => (
                    Compare::modified(item.key.clone(), revision),
                    Guard::Other("tasks".to_owned()),
                ),
                None => (Compare::absent(item.key.clone()), Guard::Subject),
            };
            txn.compare(compare, guard);
            txn.write(Op::put(item.key.clone(), value));
        }
        txn.touch(agent);
        if self.params.dry_run {
            return Ok(Some((items, 0)));
        }
        match state.commit(txn).await? {
            Outcome::Done(revision) => Ok(Some((items, revision))),
            Outcome::Lost(guards) => {
                if guards.contains(&Guard::Subject) {
                    self.refuse_taken(&items)?;
                }
                Ok(None)
            }
        }
    }

    /// Something without which nothing of the agent can be accepted.
    async fn there(&self, key: &Key, otherwise: impl FnOnce() -> String) -> Result<Entry> {
        let state = self.context.state;
        let entry = state.store.get(key).await?;
        entry.ok_or_else(|| {
            let resource = &state.resources.muster("offers").resource;
            let why = format!("{}; its offers are about to be taken back", otherwise());
            ApiError::conflict(resource, self.name, why)
        })
    }

    fn encode(&self, object: &Value) -> Result<bytes::Bytes> {
        let map = object.as_object().cloned().unwrap_or_default();
        let resource = &self.tasks.stored;
        let bytes = hub::encode(&resource.api_version(), &resource.kind, map);
        if bytes.len() > limits::OBJECT_BYTES {
            let message = format!("a task has {} bytes, {} are allowed", bytes.len(), limits::OBJECT_BYTES);
            return Err(ApiError::too_large(message));
        }
        Ok(bytes)
    }

    /// A launched task whose name is taken.
    fn refuse_taken(&self, items: &[Item]) -> Result<()> {
        let new = items.iter().filter(|item| item.revision.is_none());
        let mut taken = new.filter(|item| self.context.hub().get(&item.key).is_some());
        match taken.next() {
            None => Ok(()),
            Some(item) => {
                let name = item.object["metadata"]["name"].as_str().unwrap_or_default();
                Err(ApiError::already_exists(&self.tasks.resource, name))
            }
        }
    }

    fn bind(&self, object: &mut Value, placed: Placed, to: (&str, Revision), call: Option<(&str, usize)>) {
        if let Some((key, index)) = call {
            object["metadata"]["annotations"][ANNOTATION_KEY] = json!(key);
            object["metadata"]["annotations"][ANNOTATION_PLACE] = json!(index.to_string());
        }
        let now = self.context.now;
        let status = match placed {
            Placed::Impossible(message) => TaskStatus {
                phase: Phase::Error,
                reason: Some(TaskReason::InvalidTask),
                message,
                offer: Some(self.name.to_owned()),
                finished_at: Some(Time(now)),
                ..TaskStatus::default()
            },
            Placed::Bound(bundle) => {
                let finalizers = &mut object["metadata"]["finalizers"];
                if !finalizers.is_array() {
                    *finalizers = json!([]);
                }
                if let Some(finalizers) = finalizers.as_array_mut()
                    && !finalizers.iter().any(|finalizer| finalizer == names::FINALIZER_AGENT)
                {
                    finalizers.push(json!(names::FINALIZER_AGENT));
                }
                TaskStatus {
                    phase: Phase::Staging,
                    reason: Some(TaskReason::OfferAccepted),
                    agent: Some(to.0.to_owned()),
                    offer: Some(self.name.to_owned()),
                    binding: Some(to.1),
                    devices: bundle.devices,
                    ports: bundle.ports,
                    ..TaskStatus::default()
                }
            }
        };
        let before = typed::<Task>(object).ok().and_then(|task| task.status);
        let conditions = before.map(|status| status.conditions).unwrap_or_default();
        set_status(object, TaskStatus { conditions, ..status }, now);
    }

    /// The result of the call with the same key that succeeded before, if there was one. Only looked for when the offer is gone.
    async fn done_before(&self, request: &AcceptRequest) -> Result<Option<AcceptResult>> {
        let Some(key) = request.idempotency_key.as_deref() else {
            return Ok(None);
        };
        let offers = &self.context.state.resources.muster("offers").resource;
        let offer = keys::object(offers, self.namespace, self.name);
        if self.context.state.store.get(&offer).await?.is_some() {
            return Ok(None);
        }
        let newest = self.context.state.store.revision().await?;
        let reached = self.context.hub().reach(newest, limits::READ_WAIT).await;
        reached.map_err(|error| ApiError::unavailable(error.to_string()))?;
        let found = self
            .context
            .hub()
            .list(self.tasks.id, &Filter::all(Some(self.namespace)), &Part::default());
        let mut tasks: Vec<(usize, String, Revision)> = Vec::new();
        let text = json!(key).to_string();
        for object in found.objects.iter().filter(|object| object.contains(&text)) {
            let json = object.json();
            let annotations = &json["metadata"]["annotations"];
            if annotations[ANNOTATION_KEY] == key && json["status"]["offer"] == self.name {
                let place = annotations[ANNOTATION_PLACE]
                    .as_str()
                    .and_then(|place| place.parse().ok());
                let launched = place.is_some_and(|place: usize| place < request.launch.len());
                let revision = if launched { object.created } else { object.revision };
                tasks.push((place.unwrap_or(usize::MAX), object.name().to_owned(), revision));
            }
        }
        tasks.sort();
        // A task that was bound may have been written since; each version is at or after the accept, so the earliest is nearest.
        let revision = tasks.iter().map(|(_, _, revision)| *revision).min();
        Ok(revision.map(|revision| AcceptResult {
            tasks: tasks.into_iter().map(|(_, name, _)| name).collect(),
            resource_version: revision.to_string(),
        }))
    }
}

/// Says where in the request a bad task stands.
fn at(place: &str, mut error: ApiError) -> ApiError {
    error.message = format!("{place}: {}", error.message);
    for cause in &mut error.details.causes {
        cause.field = format!("{place}.{}", cause.field);
    }
    error
}

/// Whether the only thing that is wrong is a wish for parts of GPUs.
fn only_gpus(error: &ApiError) -> bool {
    let causes = &error.details.causes;
    !causes.is_empty() && causes.iter().all(|cause| cause.field == "spec.resources.gpus")
}

fn ask(index: usize, item: &Item, all: &[Item]) -> Result<Asked> {
    let launches = all.iter().filter(|item| item.revision.is_none()).count();
    let place = match item.revision {
        None => format!("launch[{index}]"),
        Some(_) => format!("bind[{}]", index - launches),
    };
    let task: Task = typed(&item.object).map_err(|violation| {
        let name = item.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        at(&place, ApiError::invalid("Task", names::GROUP, &name, vec![violation]))
    })?;
    Ok(Asked {
        place,
        task,
        exists: item.revision.is_some(),
    })
}
