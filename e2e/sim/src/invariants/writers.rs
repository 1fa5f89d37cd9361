//! Who may write: only who holds what they claim to hold.

use k8s_openapi::api::coordination::v1::Lease;
use muster_api::names::{LEASE_CONTROLLERS, NAMESPACE_AGENTS, NAMESPACE_SYSTEM};
use muster_api::v1::Task;
use muster_store::Change;

use super::{Checker, LEASES, OFFERS, TASKS};
use crate::writer::Writer;

impl Checker {
    /// A revision is written under the fence as it was right before, by somebody who may.
    pub(super) fn check_writer(&mut self, writer: &Writer, changes: &[&Change]) {
        self.wrote.insert(writer.id, self.revision);
        let request = format!("{} of {}", writer.request, writer.process);
        if self.denied.contains(&writer.id) {
            self.violated(format!("{request} landed although it was denied"));
        }
        if let Some((lease, token)) = &writer.fence {
            let held = self.leases.get(lease).map_or(0, |held| held.created);
            if held != *token {
                self.violated(format!(
                    "{request} landed under {lease}@{token}, but the lease was at {held}"
                ));
            }
        }
        for change in changes {
            let key = change.key.as_str();
            if let Some(name) = key.strip_prefix(LEASES) {
                self.check_end_of_lease(writer, name, change);
            } else if key.starts_with(OFFERS) && change.current.is_some() && writer.is_controllers() {
                self.check_session(writer, &format!("{NAMESPACE_SYSTEM}/{LEASE_CONTROLLERS}"), key);
            } else if key.starts_with(TASKS) {
                self.check_reporter(writer, change);
            }
        }
    }

    fn check_session(&mut self, writer: &Writer, needed: &str, what: &str) {
        if writer.fence.as_ref().is_none_or(|(lease, _)| lease != needed) {
            let Writer {
                request,
                process,
                fence,
                ..
            } = writer;
            self.violated(format!(
                "{what}: {request} of {process} landed under {fence:?}, not under {needed}"
            ));
        }
    }

    /// The status of a bound task is its agent's to write, under the agent's session, or the controllers', under theirs. What the
    /// controllers delete has ended.
    fn check_reporter(&mut self, writer: &Writer, change: &Change) {
        let key = change.key.as_str();
        let Some(old) = self.tasks.get(key).cloned() else {
            return;
        };
        let new: Option<Task> = change
            .current
            .as_ref()
            .and_then(|entry| serde_json::from_slice(&entry.value).ok());
        let deleted = |task: &Task| task.metadata.deletion_timestamp.is_some();
        if writer.is_controllers() && !deleted(&old) && new.as_ref().is_none_or(deleted) && !old.phase().is_terminal() {
            self.violated(format!("{key}: the controllers deleted a task that is {}", old.phase()));
        }
        let reported = new.as_ref().is_some_and(|new| new.status != old.status) && writer.request.starts_with("PATCH");
        let agent = old.agent().unwrap_or_default().to_owned();
        if reported && writer.machine().is_some() {
            self.check_session(writer, &format!("{NAMESPACE_AGENTS}/{agent}"), key);
        } else if reported && writer.is_controllers() {
            self.check_session(writer, &format!("{NAMESPACE_SYSTEM}/{LEASE_CONTROLLERS}"), key);
        }
    }

    /// A lease is taken away by nobody but its holder, or the holder's successor on the same machine.
    fn check_end_of_lease(&mut self, writer: &Writer, name: &str, change: &Change) {
        let Some(old) = self.leases.get(name).cloned() else {
            return;
        };
        if change.current.is_some() {
            let lease: Option<Lease> = change
                .current
                .as_ref()
                .and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            return self.violated(format!(
                "lease {name} of {} was changed in place to {holder}",
                old.holder
            ));
        }
        let own = match writer.machine() {
            Some(machine) => old.holder.starts_with(&format!("{machine}/")),
            None => old.holder == writer.process,
        };
        if !own {
            let Writer { request, process, .. } = writer;
            self.violated(format!(
                "lease {name} of {} was ended by {request} of {process}",
                old.holder
            ));
        }
    }
}
