//! The quick profile, the determinism of seeds, the mutants, and a part of the sieve.

use std::collections::BTreeSet;

use muster_sim::campaign::{Campaign, all};
use muster_sim::mutants::MUTANTS;
use muster_sim::profile::PROFILES;
use muster_sim::sieve::sieve;

/// How many seeds of each profile; the long run is `muster-sim --seeds 10000`.
const SEEDS: u64 = 20;

fn quick() -> Campaign {
    Campaign {
        seeds: SEEDS,
        ..Campaign::default()
    }
}

#[test]
fn no_seed_of_any_profile_fails() {
    let seeds = std::env::var("MUSTER_SIM_SEEDS");
    let seeds = seeds.ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    for profile in PROFILES {
        let campaign = Campaign {
            seeds,
            profile: Some(profile),
            ..quick()
        };
        let verdict = all(&campaign);
        let shown = verdict
            .failed
            .iter()
            .take(3)
            .map(|outcome| (outcome.seed, &outcome.violations));
        let shown: Vec<_> = shown.collect();
        assert!(
            shown.is_empty(),
            "{profile:?}: {} of {seeds} seeds failed: {shown:#?}",
            verdict.failed.len()
        );
        assert!(
            verdict.figures["revisions"] > 50 * seeds,
            "{profile:?}: next to nothing was done"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let campaign = Campaign {
        seeds: 5,
        twice: true,
        ..quick()
    };
    assert!(all(&campaign).failed.is_empty());
}

#[test]
fn every_mutant_is_caught() {
    let missed = MUTANTS.iter().filter(|mutant| {
        let campaign = Campaign {
            seeds: 300,
            mutant: Some(**mutant),
            ..quick()
        };
        all(&campaign).failed.is_empty()
    });
    let missed: Vec<_> = missed.collect();
    assert!(missed.is_empty(), "not caught in 300 seeds: {missed:?}");
}

#[test]
fn one_thing_that_goes_wrong_anywhere_makes_no_difference() {
    let sieved = sieve(23);
    assert!(sieved.diverged.is_empty(), "{:#?}", sieved.diverged);
    let places: BTreeSet<_> = sieved.tried.keys().collect();
    assert!(places.len() >= 6, "{places:?}");
}
