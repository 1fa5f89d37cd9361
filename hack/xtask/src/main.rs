//! `cargo xtask`: the checks that hold the tree together.
#![allow(clippy::disallowed_methods, reason = "a build tool measures real time")]

mod dependencies;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const USAGE: &str = "cargo xtask <command>

  check   formatting, lints, tidy, then all tests: what has to hold before a change lands
  lint    formatting, lints, tidy and dependencies only
  tidy    crate edges, invariants, file sizes only
  deps    licences and sources of what comes from outside only";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "check" => lint().and_then(|()| tests()),
        "lint" => lint(),
        "tidy" => tidy::run(&root()),
        "deps" => dependencies::run(&root()),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("hack/xtask lies two levels below the top")
        .into()
}

fn lint() -> Result<()> {
    step("cargo", &["fmt", "--all", "--check"])?;
    tidy::run(&root())?;
    dependencies::run(&root())?;
    step(
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ],
    )
}

fn tests() -> Result<()> {
    step("cargo", &["test", "--workspace", "--no-fail-fast"])
}

/// Runs a command at the top of the tree and says how long it took.
fn step(program: &str, args: &[&str]) -> Result<()> {
    let started = Instant::now();
    let shown = format!("{program} {}", args.join(" "));
    println!("==> {shown}");
    let status = Command::new(program)
        .args(args)
        .current_dir(root())
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    println!("<== {shown}: {:.0} s", started.elapsed().as_secs_f64());
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}
