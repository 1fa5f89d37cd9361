//! Many seeds, on all cores, and what to say about them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;

use crate::mutants::Mutant;
use crate::run::{self, Options, Outcome};

/// Simulates whole clusters, one for each seed, and checks that nothing is lost, doubled or stuck.
#[derive(Parser, Clone, Debug)]
pub struct Campaign {
    /// Only this seed, with its whole verdict.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many seeds; the long profile is 10000.
    #[arg(long, default_value_t = 500)]
    pub seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// How many deeds each seed has.
    #[arg(long, default_value_t = 40)]
    pub deeds: usize,
    /// A planted bug: success is then to catch it.
    #[arg(long)]
    pub mutant: Option<Mutant>,
}

impl Campaign {
    fn options(&self, seed: u64) -> Options {
        Options {
            seed,
            deeds: self.deeds,
            mutant: self.mutant,
        }
    }
}

/// Runs the seeds, prints what happened, and returns whether all is well.
pub fn run(campaign: &Campaign) -> bool {
    if let Some(seed) = campaign.seed {
        let outcome = run::run(campaign.options(seed));
        println!(
            "seed {seed}: {} revisions, trace {:016x}, {:?}",
            outcome.revisions, outcome.trace, outcome.phases
        );
        outcome
            .violations
            .iter()
            .for_each(|violation| println!("  {violation}"));
        return outcome.violations.is_empty() != campaign.mutant.is_some();
    }
    let failed = failures(campaign);
    for outcome in &failed {
        println!(
            "seed {} failed; run it again with: muster-sim --seed {}",
            outcome.seed, outcome.seed
        );
        outcome
            .violations
            .iter()
            .take(5)
            .for_each(|violation| println!("  {violation}"));
    }
    match campaign.mutant {
        None => println!("{} seeds, {} failed", campaign.seeds, failed.len()),
        Some(mutant) => println!("{mutant:?}: caught by {} of {} seeds", failed.len(), campaign.seeds),
    }
    failed.is_empty() != campaign.mutant.is_some()
}

/// The seeds that fail; with a planted bug, the first one is enough.
pub fn failures(campaign: &Campaign) -> Vec<Outcome> {
    let next = AtomicU64::new(campaign.from);
    let end = campaign.from + campaign.seeds;
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run::run(campaign.options(seed));
                    if !outcome.violations.is_empty() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                        if campaign.mutant.is_some() {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|outcome: &Outcome| outcome.seed);
    failed
}
