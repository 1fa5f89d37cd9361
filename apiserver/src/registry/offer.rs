//! Offers: made by the control plane through the agent's subresource, answered through their own.

use muster_api::names;
use muster_api::v1::Offer;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::{Value, json};

use super::{Context, Strategy};
use crate::error::Result;
use crate::schema::typed;

pub(super) struct Offers;

impl Strategy for Offers {
    fn notes_system(&self) -> bool {
        false
    }

    fn may_own(&self, _: &Value) -> bool {
        false
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) -> Result<()> {
        object["status"] = json!({"phase": "Open"});
        Ok(())
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        match typed::<Offer>(object) {
            Err(violation) => vec![violation],
            Ok(offer) => validate(&offer),
        }
    }

    fn touches(&self, old: Option<&Value>, new: Option<&Value>) -> Option<String> {
        let agent = old.or(new)?["spec"]["agent"].as_str()?;
        Some(agent.to_owned())
    }
}

fn validate(offer: &Offer) -> Vec<Violation> {
    let mut violations = Violations::new();
    let path = FieldPath::root("spec");
    let spec = &offer.spec;
    violations.check(
        &path.field("framework"),
        &spec.framework,
        names::dns_subdomain_problem(&spec.framework),
    );
    violations.check(&path.field("role"), &spec.role, names::role_problem(&spec.role));
    violations.check(
        &path.field("agent"),
        &spec.agent,
        names::dns_subdomain_problem(&spec.agent),
    );
    let devices = offer.bundle().devices.len();
    if devices != spec.devices.len() {
        violations.duplicate(&path.field("devices"), "uuid");
    }
    if usize::try_from(spec.resources.gpus) != Ok(devices) {
        let why = format!("must be the number of devices, {devices}");
        violations.invalid(&path.field("resources").field("gpus"), spec.resources.gpus, &why);
    }
    violations.into_vec()
}
