//! What is wrong with a task, field by field.

use std::collections::BTreeSet;

use super::agent::check_request;
use super::task::{Desired, Operator, RestartPolicy, Task, TaskSpec};
use super::task_image::ImagePullPolicy;
use super::unreachable::{Unreachable, UnreachablePolicy};
use crate::device::GpuSelector;
use crate::duration::Span;
use crate::image::{ImageReference, image_problem};
use crate::names;
use crate::ports::PortRequest;
use crate::quantity::{ByteSize, Scalar};
use crate::validation::{FieldPath, Violation, Violations};

/// Longest command line, with all arguments and variables: half of Linux' `ARG_MAX` of 2 MiB, and so also the object limit.
const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Agents that are cut off together are noticed within two renewals, 10 s, of each other; nothing is done about one before all are known.
const REPLACE_AFTER_MIN: Span = Span::from_secs(10);
/// An agent renews its session every 5 s, and may miss three renewals before it counts as lost: what fences itself sooner ends for nothing.
const SELF_FENCE_MIN: Span = Span::from_secs(20);
const ITEMS_MAX: usize = 1000;
const PRIORITY_MAX: i32 = 1_000_000;

impl Task {
    /// What is wrong with the spec.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Violations::new();
        let spec = FieldPath::root("spec");
        self.validate_identity(&mut violations, &spec);
        self.validate_command(&mut violations, &spec);
        self.validate_given(&mut violations, &spec);
        self.validate_resources(&mut violations, &spec);
        self.validate_placement(&mut violations, &spec);
        self.validate_unreachable(&mut violations, &spec.field("unreachable"));
        violations.into_vec()
    }

    fn validate_identity(&self, violations: &mut Violations, spec: &FieldPath) {
        let name = self.name();
        violations.check(
            &FieldPath::root("metadata").field("name"),
            name,
            names::dns_label_problem(name),
        );
        let framework = &self.spec.framework;
        violations.check(
            &spec.field("framework"),
            framework,
            names::dns_subdomain_problem(framework),
        );
        if let Some(role) = &self.spec.role {
            violations.check(&spec.field("role"), role, names::role_problem(role));
        }
        if let Some(offer) = &self.spec.offer {
            violations.check(&spec.field("offer"), offer, names::dns_subdomain_problem(offer));
        }
        let priority = self.spec.priority;
        if priority.abs() > PRIORITY_MAX {
            let why = format!("must be from -{PRIORITY_MAX} to {PRIORITY_MAX}");
            violations.invalid(&spec.field("priority"), priority, &why);
        }
    }

    fn validate_command(&self, violations: &mut Violations, spec: &FieldPath) {
        match (&self.spec.image, self.spec.command.first()) {
            (None, None) => {
                let why = "what shall run, such as [\"sh\", \"-c\", \"echo hello\"]; only an image can know it";
                violations.required(&spec.field("command"), why);
            }
            (_, Some(word)) if word.is_empty() => {
                violations.required(&spec.field("command").index(0), "the name of what shall run");
            }
            _ => {}
        }
        if let Some(image) = &self.spec.image {
            violations.check(&spec.field("image"), image, image_problem(image));
        }
        self.validate_pull(violations, spec);
        let parts = [("command", &self.spec.command), ("args", &self.spec.args)];
        for (name, words) in parts {
            if words.len() > ITEMS_MAX {
                violations.too_many(&spec.field(name), words.len(), ITEMS_MAX);
            }
            if let Some(index) = words.iter().position(|word| word.contains('\0')) {
                violations.invalid(&spec.field(name).index(index), "…", "must not contain a NUL character");
            }
        }
        self.validate_env(violations, &spec.field("env"));
        let words = self
            .spec
            .command
            .iter()
            .chain(&self.spec.args)
            .map(|word| word.len() + 1);
        let variables = self.spec.env.iter().map(|var| var.name.len() + var.value.len() + 2);
        if words.chain(variables).sum::<usize>() > COMMAND_BYTES_MAX {
            violations.too_long(&spec.field("command"), COMMAND_BYTES_MAX);
        }
        if let Some(dir) = self
            .spec
            .working_dir
            .as_deref()
            .filter(|dir| !dir.starts_with('/') || dir.contains('\0'))
        {
            violations.invalid(&spec.field("workingDir"), dir, "must be an absolute path");
        }
    }

    /// What is said about fetching makes sense only of an image that can be fetched.
    fn validate_pull(&self, violations: &mut Violations, spec: &FieldPath) {
        let secrets = !self.spec.image_pull_secrets.is_empty();
        let Some(image) = &self.spec.image else {
            if self.spec.image_pull_policy.is_some() {
                violations.forbidden(&spec.field("imagePullPolicy"), "the task has no image");
            }
            if secrets {
                violations.forbidden(&spec.field("imagePullSecrets"), "the task has no image");
            }
            return;
        };
        let nobody = image
            .parse::<ImageReference>()
            .is_ok_and(|image| image.registry().is_none());
        if nobody && self.spec.image_pull_policy == Some(ImagePullPolicy::Always) {
            let why = "the image's name has no registry that could be asked: write which has it, as in registry.example/team/app:1, or IfNotPresent";
            violations.forbidden(&spec.field("imagePullPolicy"), why);
        }
    }

    fn validate_env(&self, violations: &mut Violations, env: &FieldPath) {
        if self.spec.env.len() > ITEMS_MAX {
            violations.too_many(env, self.spec.env.len(), ITEMS_MAX);
        }
        let mut seen = BTreeSet::new();
        for (index, var) in self.spec.env.iter().enumerate() {
            let path = env.index(index).field("name");
            if var.name.is_empty() {
                violations.required(&path, "");
            } else if var.name.contains(['=', '\0']) {
                violations.invalid(&path, &var.name, "must not contain '=' or a NUL character");
            } else if !seen.insert(&var.name) {
                violations.duplicate(&path, &var.name);
            }
            if var.value.contains('\0') {
                violations.invalid(
                    &env.index(index).field("value"),
                    "…",
                    "must not contain a NUL character",
                );
            }
            var.validate_source(violations, &env.index(index), self);
        }
    }

    fn validate_resources(&self, violations: &mut Violations, spec: &FieldPath) {
        let resources = &self.spec.resources;
        let path = spec.field("resources");
        check_request(violations, &path, resources);
        if resources.cpus == Scalar::ZERO && resources.memory == ByteSize::ZERO {
            violations.required(
                &path,
                "ask for cpus or memory or both; what is not asked for cannot be offered",
            );
        }
        if let PortRequest::These(ports) = &resources.ports
            && ports.len() > 1000
        {
            violations.too_many(&path.field("ports"), ports.len() as usize, 1000);
        }
        if let Some(limits) = &self.spec.limits {
            let path = spec.field("limits");
            if let Some(cpus) = limits
                .cpus
                .filter(|cpus| *cpus < resources.cpus || *cpus == Scalar::ZERO)
            {
                violations.invalid(
                    &path.field("cpus"),
                    cpus,
                    "must be more than zero and at least spec.resources.cpus",
                );
            }
            if let Some(memory) = limits
                .memory
                .filter(|memory| *memory < resources.memory || *memory == ByteSize::ZERO)
            {
                violations.invalid(
                    &path.field("memory"),
                    memory,
                    "must be more than zero and at least spec.resources.memory",
                );
            }
        }
        if let Some(Err(error)) = self.spec.gpu.as_ref().map(GpuSelector::requirement) {
            violations.invalid(&spec.field("gpu").field(error.field), "", &error.message);
        }
        if self.spec.gpu.is_some() && resources.gpus == Scalar::ZERO {
            violations.required(&path.field("gpus"), "spec.gpu chooses among GPUs, so ask for some");
        }
    }

    fn validate_placement(&self, violations: &mut Violations, spec: &FieldPath) {
        if self.spec.constraints.len() > 64 {
            violations.too_many(&spec.field("constraints"), self.spec.constraints.len(), 64);
        }
        for (index, constraint) in self.spec.constraints.iter().enumerate() {
            let path = spec.field("constraints").index(index);
            violations.check(
                &path.field("attribute"),
                &constraint.attribute,
                names::qualified_name_problem(&constraint.attribute),
            );
            let wants_values = matches!(constraint.operator, Operator::In | Operator::NotIn);
            if wants_values && constraint.values.is_empty() {
                violations.required(&path.field("values"), "for the operators In and NotIn");
            }
            if !wants_values && !constraint.values.is_empty() {
                violations.forbidden(&path.field("values"), "only the operators In and NotIn take values");
            }
        }
        if self.spec.deadline.is_some_and(|deadline| deadline.millis() == 0) {
            violations.invalid(
                &spec.field("deadline"),
                "0s",
                "must be more than zero; leave it out for no deadline",
            );
        }
        if self.spec.max_retries.is_some() && self.spec.restart_policy == RestartPolicy::Never {
            violations.forbidden(
                &spec.field("maxRetries"),
                "restartPolicy is Never; set it to OnFailure or Always",
            );
        }
    }

    fn validate_unreachable(&self, violations: &mut Violations, path: &FieldPath) {
        let Unreachable { policy, after, keep } = self.unreachable();
        let least = match policy {
            UnreachablePolicy::Wait => None,
            UnreachablePolicy::ReplaceAfter => Some(REPLACE_AFTER_MIN),
            UnreachablePolicy::SelfFence => Some(SELF_FENCE_MIN),
        };
        match (least, after) {
            (None, Some(_)) => violations.forbidden(
                &path.field("after"),
                "policy is Wait, which waits for ever; set it to ReplaceAfter or SelfFence",
            ),
            (Some(least), None) => {
                let why = format!("how long to wait before {policy:?} applies, at least {least}");
                violations.required(&path.field("after"), &why);
            }
            (Some(least), Some(after)) if after < least => {
                let why = format!("must be at least {least} for {policy:?}");
                violations.invalid(&path.field("after"), after, &why);
            }
            _ => {}
        }
        if keep.is_some() && policy != UnreachablePolicy::ReplaceAfter {
            violations.forbidden(&path.field("keep"), "only ReplaceAfter makes a replacement");
        }
    }

    /// What is wrong with turning `old` into this: a spec is fixed, but for `desired`, and that goes one way only.
    pub fn validate_update(&self, old: &Task) -> Vec<Violation> {
        let mut violations = Violations::new();
        let spec = FieldPath::root("spec");
        if old.spec.desired == Desired::Killed && self.spec.desired == Desired::Run {
            let why = "a task that was asked to end does not come back; create a new one";
            violations.forbidden(&spec.field("desired"), why);
        }
        let with_desired = TaskSpec {
            desired: self.spec.desired,
            ..old.spec.clone()
        };
        if with_desired != self.spec {
            let why = "a task's spec is fixed, but for `desired`; delete the task and create it anew";
            violations.forbidden(&spec, why);
        }
        violations.into_vec()
    }
}
