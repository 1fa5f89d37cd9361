//! Roles: what may be done, of a namespace or of the whole cluster. What they mean is in [`crate::rbac`].

use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::Value;

use super::{Context, Strategy, escalation};
use crate::error::Result;
use crate::rbac::{GROUP, Rule};

/// Of which kind the roles are.
pub(super) struct Roles {
    /// Whether they are of the whole cluster.
    pub(super) cluster: bool,
}

/// Names of roles and bindings may have more in them than others, as in `system:discovery`.
pub(super) fn name_problem(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some(format!("may not be '{name}'"));
    }
    let bad = name.chars().find(|c| matches!(c, '/' | '%'));
    if let Some(bad) = bad {
        return Some(format!("may not contain '{bad}'"));
    }
    (name.is_empty() || name.len() > 253 || name.chars().any(char::is_control))
        .then(|| "must have 1 to 253 characters, and none that cannot be printed".to_owned())
}

impl Roles {
    fn plural(&self) -> String {
        let plural = if self.cluster { "clusterroles" } else { "roles" };
        format!("{plural}.{GROUP}")
    }

    fn check(&self, context: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
        match context.state.resources.stored(&self.plural()) {
            Some(kind) => escalation::check_role(context, &kind, object, old),
            None => Ok(()),
        }
    }

    fn validate_rule(&self, violations: &mut Violations, path: &FieldPath, rule: &Rule) {
        if rule.verbs.is_empty() {
            violations.required(&path.field("verbs"), "verbs must contain at least one value");
        }
        let of_kinds = !rule.api_groups.is_empty() || !rule.resources.is_empty() || !rule.resource_names.is_empty();
        if !rule.paths.is_empty() {
            let shown = crate::rbac::quoted(&rule.paths);
            if !self.cluster {
                let why = "namespaced rules cannot apply to non-resource URLs";
                violations.invalid(&path.field("nonResourceURLs"), &shown, why);
            }
            if of_kinds {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                violations.invalid(&path.field("nonResourceURLs"), &shown, why);
            }
            return;
        }
        if rule.api_groups.is_empty() {
            let why = "resource rules must supply at least one api group";
            violations.required(&path.field("apiGroups"), why);
        }
        if rule.resources.is_empty() {
            let why = "resource rules must supply at least one resource";
            violations.required(&path.field("resources"), why);
        }
    }
}

impl Strategy for Roles {
    fn unconditional_update(&self) -> bool {
        true
    }

    fn counts_generations(&self) -> bool {
        false
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        name_problem(name)
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) -> Result<()> {
        self.check(context, object, None)
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        self.check(context, object, Some(old))
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        for (index, rule) in Rule::read_all(&object["rules"]).iter().enumerate() {
            self.validate_rule(&mut violations, &FieldPath::root("rules").index(index), rule);
        }
        let selectors = &object["aggregationRule"]["clusterRoleSelectors"];
        if !object["aggregationRule"].is_null() && selectors.as_array().is_none_or(Vec::is_empty) {
            let path = FieldPath::root("aggregationRule").field("clusterRoleSelectors");
            violations.required(
                &path,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        violations.into_vec()
    }
}
