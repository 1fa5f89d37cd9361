//! The quick profile, the determinism of seeds, the mutants, and a part of the sieve.

use std::collections::BTreeSet;

use muster_sim::campaign::{Campaign, all};
use muster_sim::mutants::MUTANTS;
use muster_sim::profile::PROFILES;
use muster_sim::sieve::sieve;

/// How many seeds, each kind of trouble in turn; the long run is `muster-sim --seeds 10000`.
const SEEDS: u64 = 504;

/// Within so many seeds each planted bug must be found.
const SEEDS_OF_MUTANTS: u64 = 150;

#[test]
fn no_seed_fails() {
    let seeds = std::env::var("MUSTER_SIM_SEEDS");
    let seeds = seeds.ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let campaign = Campaign {
        seeds,
        ..Campaign::default()
    };
    let verdict = all(&campaign);
    let shown = verdict.failed.iter().take(3);
    let shown: Vec<_> = shown.map(|outcome| (outcome.seed, &outcome.violations)).collect();
    assert!(
        shown.is_empty(),
        "{} of {seeds} seeds failed: {shown:#?}",
        verdict.failed.len()
    );
    assert!(
        verdict.figures["revisions"] > 50 * seeds,
        "next to nothing was done: {:?}",
        verdict.figures
    );
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let campaign = Campaign {
        seeds: PROFILES.len() as u64,
        twice: true,
        ..Campaign::default()
    };
    assert!(all(&campaign).failed.is_empty());
}

#[test]
fn every_mutant_is_caught() {
    let missed = MUTANTS.iter().filter(|mutant| {
        let campaign = Campaign {
            seeds: SEEDS_OF_MUTANTS,
            mutant: Some(**mutant),
            ..Campaign::default()
        };
        all(&campaign).failed.is_empty()
    });
    let missed: Vec<_> = missed.collect();
    assert!(missed.is_empty(), "not caught in {SEEDS_OF_MUTANTS} seeds: {missed:?}");
}

#[test]
fn one_thing_that_goes_wrong_anywhere_makes_no_difference() {
    let sieved = sieve(23);
    assert!(sieved.diverged.is_empty(), "{:#?}", sieved.diverged);
    let places: BTreeSet<_> = sieved.tried.keys().collect();
    assert!(places.len() >= 6, "{places:?}");
}
