//! The quick profile, the determinism of seeds, and the mutants.

use muster_sim::campaign::{Campaign, failures};
use muster_sim::mutants::{MUTANTS, Mutant};
use muster_sim::run::{Options, run};

fn campaign(seeds: u64, mutant: Option<Mutant>) -> Campaign {
    Campaign {
        seed: None,
        seeds,
        from: 0,
        deeds: 40,
        mutant,
    }
}

#[test]
fn no_seed_of_the_quick_profile_fails() {
    let seeds = std::env::var("MUSTER_SIM_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(500);
    let failed = failures(&campaign(seeds, None));
    let shown: Vec<String> = failed
        .iter()
        .take(3)
        .map(|outcome| format!("seed {}: {:#?}", outcome.seed, outcome.violations))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds failed\n{}",
        failed.len(),
        shown.join("\n")
    );
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..10 {
        let options = Options {
            seed,
            deeds: 40,
            mutant: None,
        };
        let (first, second) = (run(options), run(options));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert!(first.revisions > 50, "seed {seed} did next to nothing");
    }
}

#[test]
fn every_mutant_is_caught() {
    for mutant in MUTANTS {
        assert!(
            !failures(&campaign(500, Some(mutant))).is_empty(),
            "{mutant:?} was not caught in 500 seeds"
        );
    }
}
