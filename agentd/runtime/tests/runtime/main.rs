//! Every runtime against every promise, and what those promise besides that run real processes.
//!
//! This executable is also the server of shims of the runtimes under test (`shim`), and an agent that can be killed (`agent`).

#![allow(clippy::unwrap_used, reason = "tests")]

mod broken;
mod containerd;
mod contents;
mod fake;
mod inside;
mod killed;
mod process;
mod server;
mod sessions;
mod ways;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use muster_runtime::conformance::{Case, Harness, cases};
use muster_runtime::process::shim_main;

use process::{Machine, Way};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|word| word.to_str()) {
        Some("shim") => return shim_main(args),
        Some("agent") => return killed::agent_main(args),
        _ => {}
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(
        cases()
            .into_iter()
            .map(|case| conformance("fake", case, || Arc::new(fake::FakeMachine::new()))),
    );
    trials.extend(
        cases()
            .into_iter()
            .map(|case| conformance("isolated", case, || Machine::new(Way::Isolated))),
    );
    trials.extend(
        cases()
            .into_iter()
            .map(|case| conformance("plain", case, || Machine::new(Way::Plain))),
    );
    trials.extend(
        cases()
            .into_iter()
            .map(|case| conformance("containerd", case, || Machine::new(Way::Containerd))),
    );
    trials.extend(killed::trials());
    trials.extend(inside::trials());
    trials.extend(server::trials());
    trials.extend(broken::trials());
    trials.extend(contents::trials());
    trials.extend(sessions::trials());
    let code = libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
    containerd::stop();
    code
}

/// A machine that cleans up after a test and then says whether it is as clean as before.
trait Cleans: Harness {
    /// Ends and removes everything.
    fn clean(&self) -> impl Future<Output = ()> + Send;
    /// Whether the time of the test is virtual.
    const PAUSED: bool;
}

fn conformance<M: Cleans + 'static>(runtime: &str, case: Case, machine: impl Fn() -> Arc<M> + Send + 'static) -> Trial {
    trial(&format!("{runtime}::{}", case.name), M::PAUSED, move || {
        let machine = machine();
        async move {
            let harness = Arc::clone(&machine);
            let run = tokio::spawn(async move { (case.run)(&*harness).await }).await;
            machine.clean().await;
            if let Err(failed) = run {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
    })
}

/// A test on one thread.
fn trial<F: Future<Output = ()>>(name: &str, paused: bool, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(paused)
            .build()?;
        runtime.block_on(test());
        Ok(())
    })
}
