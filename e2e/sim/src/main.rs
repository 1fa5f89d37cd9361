//! `muster-sim`: runs seeds and prints those that fail.

use std::process::ExitCode;

use clap::Parser;
use muster_sim::campaign::{Campaign, run};

fn main() -> ExitCode {
    let campaign = Campaign::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MUSTER_LOG"))
        .init();
    if run(&campaign) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
