//! Says of each quota whether it is in force: of several for one role, the first by name is.

use std::collections::BTreeMap;

use muster_api::v1::Quota;
use serde_json::json;

use super::condition;
use crate::runtime::{Action, Change, Context, Kind, Note, Plan, Planner, Severity, View, Write};

/// Says which quotas are in force.
#[derive(Clone, Copy, Debug)]
pub struct Quotas;

impl Planner for Quotas {
    const NAME: &'static str = "quotas";
    type Key = ();

    fn keys(&self, change: &Change, _: &View) -> Vec<()> {
        if change.kind() == Some(Kind::Quota) {
            vec![()]
        } else {
            Vec::new()
        }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        let mut plan = Plan::default();
        let quotas = view
            .quotas
            .iter()
            .filter(|(_, quota)| quota.metadata.deletion_timestamp.is_none());
        for (name, quota) in quotas {
            let winner = *first.entry(&quota.spec.role).or_insert(name);
            plan.writes
                .extend(status(quota, (winner != name).then_some(winner), context));
        }
        plan
    }
}

fn status(quota: &Quota, stands_behind: Option<&str>, context: &Context) -> Option<Write> {
    let generation = quota.metadata.generation;
    let known = quota.status.clone().unwrap_or_default();
    let entry = |type_and_status: (&str, &str), reason: &str, message: &str| {
        condition(
            &known.conditions,
            type_and_status,
            (reason, message),
            generation,
            context.now,
        )
    };
    let message = stands_behind.map(|winner| {
        let role = &quota.spec.role;
        format!("quota `{winner}` is in force for role `{role}`; delete one of the two, or change its role")
    });
    let conditions = match &message {
        None => vec![entry(("Ready", "True"), "InForce", "the quota is in force")],
        Some(message) => vec![
            entry(("Ready", "False"), "Duplicate", message),
            entry(("Stalled", "True"), "Duplicate", message),
        ],
    };
    if known.observed_generation == generation && known.conditions == conditions {
        return None;
    }
    let body = json!({ "observedGeneration": generation, "conditions": conditions });
    let write = Write::from(Action::status(Kind::Quota, &quota.metadata, body));
    Some(match message {
        None => write,
        Some(message) => write.telling(Note::about(
            Kind::Quota,
            &quota.metadata,
            Severity::Warning,
            "QuotaDuplicate",
            message,
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn ready(view: &View) -> Vec<(String, String)> {
        let plan = Quotas.plan(&(), view, &Context::at(now()));
        let patch = |write: Write| match write.action {
            Action::Patch { id, body, .. } => (
                id.name.to_string(),
                body["status"]["conditions"][0]["status"]
                    .as_str()
                    .expect("status")
                    .to_owned(),
            ),
            other => panic!("unexpected {other:?}"),
        };
        plan.writes.into_iter().map(patch).collect()
    }

    #[test]
    fn of_two_quotas_for_a_role_the_first_by_name_is_in_force() {
        let cluster = Cluster::default().quota("b", "ml").quota("a", "ml").quota("c", "web");
        let expect = [("a", "True"), ("b", "False"), ("c", "True")];
        assert_eq!(
            ready(&cluster.view()),
            expect.map(|(name, status)| (name.to_owned(), status.to_owned()))
        );
    }
}
