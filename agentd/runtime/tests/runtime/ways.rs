//! Tests that are the same for several ways of holding a command, told apart by their names.

use futures::future::LocalBoxFuture;
use libtest_mimic::Trial;

use crate::process::Way;
use crate::trial;

/// A test, for one way of holding a command.
pub(crate) type Test = fn(Way) -> LocalBoxFuture<'static, ()>;

/// Names and async functions of a [`Way`] as [`Test`]s.
macro_rules! tests {
    ($($name:literal: $test:ident),* $(,)?) => {
        [$(($name, (|way| futures::FutureExt::boxed_local($test(way))) as $crate::ways::Test)),*]
    };
}
pub(crate) use tests;

/// Those that need isolation for the ways that have it, and the others for all.
pub(crate) fn trials(isolated: &[(&str, Test)], any: &[(&str, Test)]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (prefix, way) in [
        ("isolated", Way::Isolated),
        ("plain", Way::Plain),
        ("containerd", Way::Containerd),
    ] {
        let isolated = isolated.iter().filter(|_| way != Way::Plain);
        for (name, test) in isolated.chain(any).copied() {
            trials.push(trial(&format!("{prefix}::{name}"), false, move || test(way)));
        }
    }
    trials
}
