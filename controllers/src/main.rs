//! The controllers as a program of their own.

mod config;

use std::sync::Arc;

use clap::Parser;
use muster_api::env::SystemEnv;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = config::Args::parse();
    args.start_log()?;
    let cancel = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = cancel.clone();
    let signals = tokio::spawn(async move {
        tokio::select! { biased; _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        stop.cancel();
    });
    let led = muster_controllers::run(args.client().await?, Arc::new(SystemEnv), args.config()?, cancel).await;
    signals.abort();
    Ok(led?)
}
