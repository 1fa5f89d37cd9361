//! Bindings: who has a role, in a namespace or in the whole cluster. What they mean is in [`crate::rbac`].

use muster_api::names;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::{Value, json};

use super::{Context, Strategy, escalation, role};
use crate::error::Result;
use crate::rbac::GROUP;

/// Of which kind the bindings are.
pub(super) struct Bindings {
    /// Whether they are of the whole cluster.
    pub(super) cluster: bool,
}

/// Fills in the groups that a binding may leave out.
fn complete(object: &mut Value) {
    let fill = |value: &mut Value, field: &str, default: &str| {
        if value.is_object() && value[field].as_str().is_none_or(str::is_empty) {
            value[field] = json!(default);
        }
    };
    if object["roleRef"].is_object() {
        fill(&mut object["roleRef"], "apiGroup", GROUP);
    }
    for subject in object["subjects"].as_array_mut().into_iter().flatten() {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            fill(subject, "apiGroup", GROUP);
        }
    }
}

impl Bindings {
    fn check(&self, context: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
        let plural = if self.cluster {
            "clusterrolebindings"
        } else {
            "rolebindings"
        };
        // What cannot be at all is said before what this writer may not do.
        if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) {
            return Ok(());
        }
        match context.state.resources.stored(&format!("{plural}.{GROUP}")) {
            Some(kind) => escalation::check_binding(context, &kind, object, old),
            None => Ok(()),
        }
    }

    fn validate_subject(&self, violations: &mut Violations, path: &FieldPath, subject: &Value) {
        let text = |field: &str| subject[field].as_str().unwrap_or_default();
        let (kind, name, group) = (text("kind"), text("name"), text("apiGroup"));
        if name.is_empty() {
            violations.required(&path.field("name"), "it says who is meant");
        }
        let expect = match kind {
            "ServiceAccount" => {
                let problem = (!name.is_empty()).then(|| names::dns_subdomain_problem(name)).flatten();
                violations.check(&path.field("name"), name, problem);
                if text("namespace").is_empty() {
                    violations.required(&path.field("namespace"), "a service account is in a namespace");
                }
                ""
            }
            "User" | "Group" => GROUP,
            other => {
                let known = ["ServiceAccount", "User", "Group"];
                violations.not_supported(&path.field("kind"), other, &known);
                return;
            }
        };
        if group != expect {
            violations.not_supported(&path.field("apiGroup"), group, &[expect]);
        }
    }
}

impl Strategy for Bindings {
    fn unconditional_update(&self) -> bool {
        true
    }

    fn counts_generations(&self) -> bool {
        false
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        role::name_problem(name)
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) -> Result<()> {
        complete(object);
        self.check(context, object, None)
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        complete(object);
        self.check(context, object, Some(old))
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        let path = FieldPath::root("roleRef");
        let text = |field: &str| object["roleRef"][field].as_str().unwrap_or_default();
        if text("apiGroup") != GROUP {
            violations.not_supported(&path.field("apiGroup"), text("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.cluster {
            &["ClusterRole"]
        } else {
            &["Role", "ClusterRole"]
        };
        if !kinds.contains(&text("kind")) {
            violations.not_supported(&path.field("kind"), text("kind"), kinds);
        }
        if text("name").is_empty() {
            violations.required(&path.field("name"), "it says which role is given");
        } else {
            violations.check(&path.field("name"), text("name"), role::name_problem(text("name")));
        }
        for (index, subject) in object["subjects"].as_array().into_iter().flatten().enumerate() {
            self.validate_subject(&mut violations, &FieldPath::root("subjects").index(index), subject);
        }
        violations.into_vec()
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        if object["roleRef"] != old["roleRef"] {
            violations.invalid(&FieldPath::root("roleRef"), &object["roleRef"], "cannot change roleRef");
        }
        violations.into_vec()
    }
}
