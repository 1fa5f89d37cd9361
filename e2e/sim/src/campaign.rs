//! Many seeds, on all cores, and what to say about them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;

use crate::mutants::{MUTANTS, Mutant};
use crate::profile::{PROFILES, Profile};
use crate::run::{self, Options, Outcome};
use crate::sieve;

/// Simulates whole clusters, one for each seed, and checks that nothing is lost, doubled or stuck.
#[derive(Parser, Clone, Debug)]
pub struct Campaign {
    /// Only this seed, with its whole verdict.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many seeds; the long run is 10000.
    #[arg(long, default_value_t = 500)]
    pub seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// How many deeds each seed has.
    #[arg(long, default_value_t = 40)]
    pub deeds: usize,
    /// The kind of trouble: mixed, calm, pauses, lies, partitions, machines, clocks, late, absences,
    /// successions, answers, stragglers. Default: each in turn, or what suits the mutant.
    #[arg(long)]
    pub profile: Option<Profile>,
    /// A planted bug: success is then to catch it.
    #[arg(long)]
    pub mutant: Option<Mutant>,
    /// Every planted bug, one after the other.
    #[arg(long)]
    pub mutants: bool,
    /// Instead of seeds: one history, again and again, with one thing going wrong at each of its points in turn.
    #[arg(long)]
    pub sieve: bool,
    /// Every seed twice: the same seed must give the same history.
    #[arg(long)]
    pub twice: bool,
    /// On how many threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

impl Default for Campaign {
    fn default() -> Campaign {
        Campaign::parse_from(["muster-sim"])
    }
}

impl Campaign {
    fn options(&self, seed: u64) -> Options {
        Options {
            seed,
            deeds: self.deeds,
            profile: self.profile_of(seed),
            mutant: self.mutant,
        }
    }

    fn profile_of(&self, seed: u64) -> Profile {
        let turn = PROFILES[usize::try_from(seed % PROFILES.len() as u64).expect("there are few")];
        let suits = self.mutant.map_or(turn, Mutant::profile);
        self.profile.unwrap_or(suits)
    }

    /// Whether this is what a run looks for: something wrong, or with a planted bug, what that does wrong.
    fn finds(&self, outcome: &Outcome) -> bool {
        let shows = self.mutant.map_or("", Mutant::shows);
        outcome.violations.iter().any(|violation| violation.contains(shows))
    }

    /// How a seed is run again.
    fn again(&self, seed: u64) -> String {
        let mut again = format!("muster-sim --seed {seed}");
        if let Some(profile) = self.profile {
            again.push_str(&format!(" --profile {}", format!("{profile:?}").to_lowercase()));
        }
        if let Some(mutant) = self.mutant {
            again.push_str(&format!(" --mutant {mutant:?}"));
        }
        if self.deeds != Campaign::default().deeds {
            again.push_str(&format!(" --deeds {}", self.deeds));
        }
        again
    }
}

/// Runs what was asked for, prints what happened, and returns whether all is well.
pub fn run(campaign: &Campaign) -> bool {
    if campaign.sieve {
        return sieve::report(1);
    }
    if campaign.mutants {
        let caught = MUTANTS.iter().map(|mutant| {
            let campaign = Campaign {
                mutant: Some(*mutant),
                mutants: false,
                ..campaign.clone()
            };
            run(&campaign)
        });
        // Each is tried, also after one that got away.
        return caught.filter(|caught| !caught).count() == 0;
    }
    if let Some(seed) = campaign.seed {
        return one(campaign, seed);
    }
    let verdict = all(campaign);
    for outcome in &verdict.failed {
        println!(
            "seed {} failed; run it again with: {}",
            outcome.seed,
            campaign.again(outcome.seed)
        );
        outcome
            .violations
            .iter()
            .take(5)
            .for_each(|violation| println!("  {violation}"));
    }
    match (campaign.mutant, verdict.failed.first()) {
        (None, _) => {
            println!("{} seeds, {} failed", verdict.seeds, verdict.failed.len());
            verdict
                .figures
                .iter()
                .for_each(|(what, count)| println!("  {count} {what}"));
        }
        (Some(mutant), Some(_)) => println!("{mutant:?}: caught within {} seeds", verdict.seeds),
        (Some(mutant), None) => println!("{mutant:?}: NOT caught in {} seeds", verdict.seeds),
    }
    verdict.failed.is_empty() != campaign.mutant.is_some()
}

fn one(campaign: &Campaign, seed: u64) -> bool {
    let outcome = run::run(campaign.options(seed));
    println!(
        "seed {seed}: {} revisions, trace {:016x}, {:?}",
        outcome.revisions, outcome.trace, outcome.phases
    );
    outcome
        .violations
        .iter()
        .for_each(|violation| println!("  {violation}"));
    campaign.finds(&outcome) == campaign.mutant.is_some()
}

/// What became of many seeds.
#[derive(Debug, Default)]
pub struct Verdict {
    /// How many were run.
    pub seeds: u64,
    /// Those that failed, in order; with a planted bug, those that failed by it.
    pub failed: Vec<Outcome>,
    /// The sums of what was counted.
    pub figures: BTreeMap<&'static str, u64>,
}

/// Runs all seeds; with a planted bug, until one fails.
pub fn all(campaign: &Campaign) -> Verdict {
    let next = AtomicU64::new(campaign.from);
    let end = campaign.from + campaign.seeds;
    let verdict = Mutex::new(Verdict::default());
    let threads = campaign
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = judged(campaign, seed);
                    let found = campaign.finds(&outcome);
                    if campaign.mutant.is_some() && found {
                        next.store(end, Ordering::Relaxed);
                    }
                    let mut verdict = verdict.lock().unwrap_or_else(PoisonError::into_inner);
                    verdict.seeds += 1;
                    for (what, count) in &outcome.figures {
                        *verdict.figures.entry(what).or_default() += count;
                    }
                    if found {
                        verdict.failed.push(outcome);
                    }
                }
            });
        }
    });
    let mut verdict = verdict.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdict.failed.sort_by_key(|outcome: &Outcome| outcome.seed);
    verdict
}

fn judged(campaign: &Campaign, seed: u64) -> Outcome {
    let mut outcome = run::run(campaign.options(seed));
    if campaign.twice {
        let again = run::run(campaign.options(seed));
        if again.trace != outcome.trace {
            let (first, second) = (outcome.trace, again.trace);
            outcome.violations.push(format!(
                "the same seed gave two histories: {first:016x} and {second:016x}"
            ));
        }
    }
    outcome
}
