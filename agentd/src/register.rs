//! The Agent object: made when the agent joins, kept true afterwards.
//!
//! It promises: a name belongs to one machine (an annotation says which) until somebody deletes the object; attributes are written when
//! the object is made and are the operator's afterwards; of the status only the agent's own fields are touched. A session is passed on
//! only when the object says what it should under it, so nothing is said about tasks before.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use muster_api::device::{Device, DeviceHealth};
use muster_api::env::Env;
use muster_api::v1::{Agent, AgentCapacity, AgentSpec, AgentStatus, Versions};
use muster_api::{Condition, ObjectMeta, Time};
use muster_client::{Client, Error, Patch};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::devices::{self, DeviceSource};
use crate::feed::Backoff;
use crate::limits::{CONFIRMATION_EVERY, RESYNC};
use crate::session::Session;
use crate::trust::{ANNOTATION_CONFIRMED, Quarantine};

/// Annotation on an Agent: the machine that the name belongs to.
pub const ANNOTATION_MACHINE: &str = muster_api::names::ANNOTATION_MACHINE;

/// The condition while the API server is not as it was known.
const STORE_REGRESSED: &str = "StoreRegressed";
/// The condition while the disk is full.
const DISK_PRESSURE: &str = "DiskPressure";
/// The conditions that are this agent's own to say and to take back.
const OWN: [&str; 3] = ["Ready", STORE_REGRESSED, DISK_PRESSURE];

/// The condition types of missing isolation are this and the name of the part: `NotIsolatedSeccomp`.
const NOT_ISOLATED: &str = "NotIsolated";

/// What an agent says of itself.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The machine that it runs on.
    pub machine: String,
    /// The boot of the machine.
    pub boot_id: String,
    /// What tasks may select it by.
    pub attributes: BTreeMap<String, String>,
    /// What it may give to tasks, GPUs aside.
    pub capacity: AgentCapacity,
    /// What runs on the machine.
    pub versions: Versions,
    /// Where its node server is, if it has one.
    pub address: Option<String>,
    /// What is not isolated, and why.
    pub missing: BTreeMap<String, String>,
}

/// Annotation on an Agent: which process of which boot spoke for it last, as `INCARNATION/BOOT`.
pub const ANNOTATION_INCARNATION: &str = "muster.dev/incarnation";

/// This agent must not speak under its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The name belongs to another machine.
    #[error(
        "the name {0} belongs to an agent on another machine, or with another data directory; choose another with --name, or delete the \
         Agent object if that one is gone for good: `mctl delete agent {0}`"
    )]
    NameTaken(String),
    /// A later process than this one has spoken from a copy of this disk.
    #[error(
        "the agent {agent} has spoken as process {seen} of its data directory, and this is process {own}: the disk was cloned, or set back to \
         an earlier state. If no other copy of it runs, delete the Agent object, `mctl delete agent {agent}`, which gives up its tasks; \
         otherwise give this machine an empty data directory and another --name"
    )]
    RolledBack {
        /// The agent.
        agent: String,
        /// The highest process that was seen.
        seen: String,
        /// This one.
        own: String,
    },
}

/// What keeps an agent from its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The API server is not as it was known.
    pub quarantine: Option<Quarantine>,
    /// The disk is full.
    pub disk: Option<String>,
}

/// Whether this process may speak after the one that spoke last.
fn may_follow(last: &str, incarnation: u64, boot_id: &str) -> bool {
    let Some((number, boot)) = last.split_once('/') else {
        return true;
    };
    let Ok(number) = number.parse::<u64>() else { return true };
    // Two disks that were one count alike; but one disk never counts the same twice.
    number < incarnation || (number == incarnation && boot == boot_id)
}

/// Passes sessions on, once the Agent object is right under them.
pub struct Registrar {
    /// What the object shall say.
    pub profile: Profile,
    /// The devices, looked at again from time to time.
    pub devices: Arc<dyn DeviceSource>,
    /// For the times of conditions.
    pub env: Arc<dyn Env>,
    /// Sessions as they come.
    pub sessions: watch::Receiver<Option<Session>>,
    /// Sessions as they are passed on.
    pub out: watch::Sender<Option<Session>>,
    /// Where to say that a session is doubtful.
    pub doubt: Arc<Notify>,
    /// Counts the processes that have used the data directory.
    pub incarnation: u64,
    /// What keeps the agent from its work.
    pub health: watch::Receiver<Health>,
    /// Where to say what an operator has confirmed.
    pub confirmed: watch::Sender<Option<String>>,
}

enum Failed {
    Refused(Refused),
    Call(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Call(error)
    }
}

impl Registrar {
    /// Runs until the sessions end.
    ///
    /// # Errors
    /// [`Refused`]: this agent must not speak under its name.
    pub async fn register(mut self) -> Result<(), Refused> {
        let mut backoff = Backoff::new();
        let mut changes = self.devices.changes();
        loop {
            let session = self.sessions.borrow_and_update().clone();
            let passed = self.out.borrow().as_ref().map(|session| session.fence.revision);
            if passed.is_some() && passed != session.as_ref().map(|session| session.fence.revision) {
                self.out.send_replace(None);
            }
            let Some(session) = session else {
                if self.sessions.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            };
            let wait = match self.ensure(&session.client, session.fence.revision).await {
                Ok(well) => {
                    backoff = Backoff::new();
                    if passed != Some(session.fence.revision) {
                        self.out.send_replace(Some(session));
                    }
                    // Somebody may be about to see to it.
                    if well { RESYNC } else { CONFIRMATION_EVERY }
                }
                Err(Failed::Refused(error)) => return Err(error),
                Err(Failed::Call(error)) => {
                    tracing::warn!(agent = self.profile.name, %error, "the agent is not registered");
                    if matches!(error, Error::Fenced(_)) {
                        self.doubt.notify_one();
                    }
                    backoff.next()
                }
            };
            tokio::select! {
                biased;
                changed = self.sessions.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                Ok(()) = self.health.changed() => {}
                () = devices::changed(&mut changes) => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Writes down on the object that this process speaks for it now, unless a later one has.
    async fn speak_up(&self, client: &Client, agent: &Agent) -> Result<(), Failed> {
        let profile = &self.profile;
        let annotation = |name: &str| Some(agent.metadata.annotations.as_ref()?.get(name)?.as_str());
        let own = format!("{}/{}", self.incarnation, profile.boot_id);
        match annotation(ANNOTATION_INCARNATION) {
            Some(last) if !may_follow(last, self.incarnation, &profile.boot_id) => {
                let refused = Refused::RolledBack {
                    agent: profile.name.clone(),
                    seen: last.to_owned(),
                    own,
                };
                return Err(Failed::Refused(refused));
            }
            Some(last) if last == own && annotation(ANNOTATION_MACHINE).is_some() => {}
            _ => {
                let annotations = json!({ ANNOTATION_MACHINE: profile.machine, ANNOTATION_INCARNATION: own });
                let claim = json!({ "metadata": { "annotations": annotations } });
                client.patch::<Agent>(None, &profile.name, &Patch::Merge(claim)).await?;
            }
        }
        let confirmed = annotation(ANNOTATION_CONFIRMED).map(str::to_owned);
        self.confirmed.send_if_modified(|known| {
            let news = *known != confirmed;
            *known = confirmed;
            news
        });
        Ok(())
    }

    /// Makes the object, or makes it right. Whether all is well with the machine.
    async fn ensure(&self, client: &Client, session: u64) -> Result<bool, Failed> {
        let profile = &self.profile;
        let agent: Agent = match client.get(None, &profile.name).await {
            Ok(agent) => agent,
            Err(Error::NotFound(_)) => {
                tracing::info!(agent = profile.name, "the agent joins");
                client.create(None, &new_agent(profile)).await?
            }
            Err(error) => return Err(error.into()),
        };
        match agent
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(ANNOTATION_MACHINE))
        {
            Some(machine) if *machine == profile.machine => {}
            Some(_) => return Err(Failed::Refused(Refused::NameTaken(profile.name.clone()))),
            None => {}
        }
        self.speak_up(client, &agent).await?;
        for (uuid, order) in &agent.spec.gpus {
            if let Some(since) = &order.seen_to_at {
                self.devices.trust(uuid, since.0);
            }
        }
        let devices = self.devices.discover();
        let health = self.health.borrow().clone();
        let sound = devices.iter().all(|device| device.health == DeviceHealth::Healthy);
        let well = sound && health.quarantine.is_none();
        let devices = devices::ordered(devices, &agent.spec.gpus);
        if let Some(status) = desired((profile, &health), devices, session, &agent, self.env.now()) {
            client
                .patch_status::<Agent>(None, &profile.name, &Patch::Merge(json!({ "status": status })))
                .await?;
        }
        Ok(well)
    }
}

fn new_agent(profile: &Profile) -> Agent {
    let spec = AgentSpec {
        attributes: profile.attributes.clone(),
        ..AgentSpec::default()
    };
    let mut agent = Agent::new(&profile.name, spec);
    agent.metadata = ObjectMeta {
        name: Some(profile.name.clone()),
        annotations: Some([(ANNOTATION_MACHINE.to_owned(), profile.machine.clone())].into()),
        ..ObjectMeta::default()
    };
    agent
}

/// The agent's own fields of the status, when they are not shown yet.
fn desired(
    (profile, health): (&Profile, &Health),
    devices: Vec<Device>,
    session: u64,
    agent: &Agent,
    now: Timestamp,
) -> Option<Value> {
    let shown = agent.status.clone().unwrap_or_default();
    let generation = agent.metadata.generation;
    let status = AgentStatus {
        capacity: AgentCapacity {
            gpus: u32::try_from(devices.len()).expect("a machine has fewer than 2^32 devices"),
            ..profile.capacity.clone()
        },
        devices,
        address: profile.address.clone(),
        versions: profile.versions.clone(),
        boot_id: Some(profile.boot_id.clone()),
        session: Some(session),
        observed_generation: generation,
        conditions: conditions((profile, health), &shown.conditions, generation, now),
        reachability: shown.reachability,
        reachability_since: shown.reachability_since.clone(),
    };
    if status == shown {
        return None;
    }
    let mut value = serde_json::to_value(&status).expect("a status is plain data");
    if let Value::Object(fields) = &mut value {
        fields.remove("reachability");
        fields.remove("reachabilitySince");
        // In a merge patch what is not there stays, and null goes.
        for field in ["devices", "address"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    Some(value)
}

/// `Ready`, one condition for each thing that keeps the agent from its work, and for each part that is not isolated; those of others stay.
fn conditions(
    (profile, health): (&Profile, &Health),
    shown: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |type_: String, status: &str, reason: &str, message: String| {
        let before = shown
            .iter()
            .find(|before| before.type_ == type_ && before.status == status);
        Condition {
            last_transition_time: before
                .map_or(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)), |before| {
                    before.last_transition_time.clone()
                }),
            type_,
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
        }
    };
    let foreign =
        |condition: &&Condition| !OWN.contains(&condition.type_.as_str()) && !condition.type_.starts_with(NOT_ISOLATED);
    let quarantine = health
        .quarantine
        .as_ref()
        .map(|it| (STORE_REGRESSED, it.message.clone()));
    let disk = health.disk.as_ref().map(|disk| (DISK_PRESSURE, disk.clone()));
    let troubles: Vec<(&str, String)> = quarantine.into_iter().chain(disk).collect();
    let ready = match troubles.first() {
        None => condition("Ready".to_owned(), "True", "Joined", "the agent runs tasks".to_owned()),
        Some((trouble, message)) => condition("Ready".to_owned(), "False", trouble, message.clone()),
    };
    let troubles = troubles
        .iter()
        .map(|(trouble, message)| condition((*trouble).to_owned(), "True", "Noticed", message.clone()));
    let missing = profile.missing.iter().map(|(part, why)| {
        let message = format!("tasks are not isolated by {part}: {why}");
        condition(
            format!("{NOT_ISOLATED}{}", camel_case(part)),
            "True",
            "Missing",
            message,
        )
    });
    std::iter::once(ready)
        .chain(troubles)
        .chain(missing)
        .chain(shown.iter().filter(foreign).cloned())
        .collect()
}

fn camel_case(text: &str) -> String {
    let words = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}

#[cfg(test)]
mod tests {
    use muster_api::v1::Reachability;

    use super::*;
    use crate::devices::SimulatedDevices;
    use crate::plan::testing::START_MS;

    fn profile() -> Profile {
        Profile {
            name: "a1".to_owned(),
            machine: "m".to_owned(),
            boot_id: "b".to_owned(),
            missing: [("device-nodes".to_owned(), "no cgroup".to_owned())].into(),
            ..Profile::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_millisecond(START_MS + 123).expect("in range")
    }

    fn devices() -> Vec<Device> {
        SimulatedDevices::parse("2xH100", "a1").expect("well-formed").discover()
    }

    #[test]
    fn the_status_tells_everything_but_what_others_write() {
        let mut agent = new_agent(&profile());
        agent.status = Some(AgentStatus {
            reachability: Reachability::Unknown,
            ..AgentStatus::default()
        });
        let status =
            desired((&profile(), &Health::default()), devices(), 7, &agent, now()).expect("it is not shown yet");
        assert_eq!(status["capacity"]["gpus"], 2);
        assert_eq!(status["session"], 7);
        assert_eq!(status["bootID"], "b");
        assert!(status.get("reachability").is_none());
        let types: Vec<&str> = status["conditions"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|c| c["type"].as_str())
            .collect();
        assert_eq!(types, ["Ready", "NotIsolatedDeviceNodes"]);
    }

    #[test]
    fn what_is_shown_already_is_not_said_again() {
        let mut agent = new_agent(&profile());
        let status =
            desired((&profile(), &Health::default()), devices(), 7, &agent, now()).expect("it is not shown yet");
        agent.status = Some(serde_json::from_value(status).expect("it is a status"));
        let later = now() + jiff::SignedDuration::from_hours(1);
        assert_eq!(
            desired((&profile(), &Health::default()), devices(), 7, &agent, later),
            None
        );
        assert!(desired((&profile(), &Health::default()), devices(), 8, &agent, later).is_some());
        assert!(
            desired((&profile(), &Health::default()), Vec::new(), 7, &agent, later)
                .is_some_and(|status| status["devices"].is_null())
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let other = Condition {
            type_: "DiskHealthy".to_owned(),
            status: "True".to_owned(),
            reason: "Checked".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(now()),
        };
        let gone = Condition {
            type_: "NotIsolatedSeccomp".to_owned(),
            ..other.clone()
        };
        let all = conditions((&profile(), &Health::default()), &[other.clone(), gone], None, now());
        assert!(all.contains(&other));
        assert!(all.iter().all(|condition| condition.type_ != "NotIsolatedSeccomp"));
    }

    #[test]
    fn what_keeps_an_agent_from_its_work_is_said_and_taken_back() {
        let health = Health {
            quarantine: None,
            disk: Some("full".to_owned()),
        };
        let full = conditions((&profile(), &health), &[], None, now());
        let brief = |all: &[Condition]| -> Vec<(String, String)> {
            let brief = all.iter().map(|one| (one.type_.clone(), one.status.clone()));
            brief.filter(|(type_, _)| !type_.starts_with(NOT_ISOLATED)).collect()
        };
        let pair = |type_: &str, status: &str| (type_.to_owned(), status.to_owned());
        assert_eq!(brief(&full), [pair("Ready", "False"), pair("DiskPressure", "True")]);
        let well = conditions((&profile(), &Health::default()), &full, None, now());
        assert_eq!(brief(&well), [pair("Ready", "True")]);
    }

    #[test]
    fn a_disk_that_was_set_back_or_copied_is_noticed() {
        for (last, incarnation, boot, may) in [
            ("4/b", 5, "b", true),
            ("4/b", 5, "c", true),
            ("5/b", 5, "b", true),
            ("5/b", 5, "c", false),
            ("6/b", 5, "b", false),
            ("garbage", 5, "b", true),
        ] {
            assert_eq!(may_follow(last, incarnation, boot), may, "{last} {incarnation} {boot}");
        }
    }
}
