//! `muster-sim`: runs seeds and prints those that fail.

use std::process::ExitCode;

use clap::Parser;
use muster_sim::campaign::{Campaign, run};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let campaign = Campaign::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::builder()
                .with_default_directive(LevelFilter::OFF.into())
                .with_env_var("MUSTER_LOG")
                .from_env_lossy(),
        )
        .init();
    if run(&campaign) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
