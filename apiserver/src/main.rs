//! The API server as a program of its own.

mod config;

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    let args = config::Args::parse();
    muster_apiserver::allocator::keep_small();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(args.run())
}
