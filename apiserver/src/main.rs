//! The API server as a program of its own.

mod config;

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    config::Args::parse().run().await
}
