//! The agent as a program of its own.

mod config;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args_os();
    // Before any thread: the containers are held by this executable, run again.
    if args.nth(1).as_deref() == Some("shim".as_ref()) {
        return Ok(muster_runtime::process::shim_main(args));
    }
    start(&config::Args::parse())
}

#[tokio::main]
async fn start(args: &config::Args) -> anyhow::Result<ExitCode> {
    let stop = args.begin()?;
    args.open().await?.run(stop).await?;
    Ok(ExitCode::SUCCESS)
}
