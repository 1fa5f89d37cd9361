//! The audit log: who asked for what, when, whether it was allowed and why, and what came of it, as events of `audit.k8s.io/v1`, a line each.
//!
//! A [`Policy`] says how much is written about which request, a [`Log`] writes it. The event of a change is written before its answer is sent.
//! When lines cannot be written, requests that change something are refused until they can; reads are answered.
//! What must never happen here: a change that was made although it was known that nothing can be written about it; content of what is secret, unless
//! the operator's own policy wants it. Tested in `tests/audit.rs` and, the parts, in their modules.

mod args;
mod log;
mod policy;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use args::AuditArgs;
pub use log::{Counts, Kept, Log, LogError};
pub use policy::{Level, Policy, PolicyError, Stage, Verdict};

/// How an audit log is kept, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file and its bounds.
    pub kept: Kept,
    /// The file of the policy; `None`: the default one.
    pub policy: Option<PathBuf>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Audit {
    /// What is written.
    pub policy: Arc<Policy>,
    /// Where.
    pub log: Arc<Log>,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy cannot be read.
    #[error("the audit policy {} cannot be read; --audit-policy-file names it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The policy is none.
    #[error("the audit policy {0}")]
    Policy(#[from] PolicyError),
    /// The log cannot be opened.
    #[error("the audit log {} cannot be opened; its directory must be there, and this user must be able to write in it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Audit {
    /// Reads the policy and opens the log.
    pub fn open(options: &Options) -> Result<Audit, AuditError> {
        let policy = match &options.policy {
            None => Policy::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| AuditError::Read {
                    path: path.clone(),
                    source,
                })?;
                Policy::parse(path, &text)?
            }
        };
        let log = Log::open(options.kept.clone()).map_err(|source| AuditError::Open {
            path: options.kept.path.clone(),
            source,
        })?;
        Ok(Audit {
            policy: Arc::new(policy),
            log: Arc::new(log),
        })
    }
}
