//! The flags of the audit log, named as those of `kube-apiserver`.

use std::path::PathBuf;

use clap::Args;

use super::{Kept, Options};

/// The audit log of a server.
#[derive(Clone, Debug, Default, Args)]
pub struct AuditArgs {
    /// Write down who asks for what and what comes of it, as events of audit.k8s.io/v1, a line of JSON each: into this file, or `-` for
    /// standard output. While it cannot be written, nothing is changed. A file that is moved away (logrotate) is begun anew, without a signal.
    #[arg(long = "audit-log-path", value_name = "FILE", help_heading = "Audit")]
    pub path: Option<PathBuf>,
    /// What is written about which request, a Policy of audit.k8s.io/v1 [default: every change and refusal, reads by users, and nothing that
    /// is secret].
    #[arg(
        long = "audit-policy-file",
        value_name = "FILE",
        requires = "path",
        help_heading = "Audit"
    )]
    pub policy: Option<PathBuf>,
    /// Megabytes from which on the next file is begun; 0: never.
    #[arg(
        long = "audit-log-maxsize",
        value_name = "MEGABYTES",
        default_value_t = 100,
        help_heading = "Audit"
    )]
    pub megabytes: u32,
    /// How many older files are kept beside it, as FILE.1 and so on; 0: all.
    #[arg(
        long = "audit-log-maxbackup",
        value_name = "NUMBER",
        default_value_t = 10,
        help_heading = "Audit"
    )]
    pub files: u32,
}

impl AuditArgs {
    /// How the log is kept; `None`: there is none.
    pub fn options(&self) -> Option<Options> {
        let path = self.path.clone()?;
        Some(Options {
            kept: Kept {
                path,
                bytes: u64::from(self.megabytes) << 20,
                files: self.files,
            },
            policy: self.policy.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        audit: AuditArgs,
    }

    #[test]
    fn a_log_is_kept_as_the_flags_say_and_not_at_all_without_a_path() {
        let parse = |flags: &str| {
            let words = ["x"].into_iter().chain(flags.split_whitespace());
            Line::try_parse_from(words).map(|line| line.audit.options())
        };
        assert_eq!(parse("").unwrap(), None);
        assert!(parse("--audit-policy-file p").is_err());
        let options = parse("--audit-log-path a --audit-log-maxsize 2 --audit-log-maxbackup 3").unwrap();
        let kept = Kept {
            path: PathBuf::from("a"),
            bytes: 2 << 20,
            files: 3,
        };
        assert_eq!(options, Some(Options { kept, policy: None }));
    }
}
