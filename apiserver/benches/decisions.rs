//! What a decision about a request costs: by the rules of a large cluster, for somebody who is in ten groups.
//!
//! 1,000 namespaces with ten bindings each, 200 roles of ten rules. `allowed` is found behind the rules of a role that does not help, `refused`
//! looks at everything that counts for the user, `compiled` is what a change of a role costs at every server.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a benchmark measures time and prints it"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_apiserver::auth::{Attributes, User, decide};
use muster_apiserver::rbac::{Binding, Role, Rule, Rules, Subject};

fn roles() -> Vec<Arc<Role>> {
    let role = |number: usize| {
        let rules: Vec<Rule> = (0..10)
            .map(|index| {
                Rule::of(
                    &["get", "list", "watch"],
                    &["example.com"],
                    &[&format!("kinds{number}x{index}")],
                )
            })
            .collect();
        Arc::new(Role {
            namespace: String::new(),
            name: format!("role-{number}"),
            rules: rules.into(),
        })
    };
    (0..200).map(role).collect()
}

fn bindings() -> Vec<Arc<Binding>> {
    let binding = |number: usize| {
        Arc::new(Binding {
            namespace: format!("team-{}", number % 1_000),
            name: format!("binding-{number}"),
            role_kind: "ClusterRole".to_owned(),
            role: format!("role-{}", number % 200),
            subjects: vec![
                Subject::Group(format!("group-{}", number % 50)),
                Subject::User(format!("user-{number}")),
            ],
        })
    };
    (0..10_000).map(binding).collect()
}

/// The median of what one run of `work` takes.
fn measure(name: &str, runs: u32, mut work: impl FnMut()) {
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..runs {
                work();
            }
            begun.elapsed() / runs
        })
        .collect();
    times.sort();
    println!("{name:<12} {:?}", times[times.len() / 2]);
}

fn main() {
    let (roles, bindings) = (roles(), bindings());
    let rules = Rules::new(roles.iter().cloned(), bindings.iter().cloned());
    let groups: Vec<String> = (0..10).map(|number| format!("group-{number}")).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let user = User::new("user-7", &groups);
    let asked = |verb, resource| Attributes {
        verb,
        group: "example.com",
        resource,
        namespace: "team-7",
        ..Attributes::default()
    };
    let (yes, no) = (asked("get", "kinds7x9"), asked("delete", "kinds7x9"));
    assert!(decide(&user, &yes, &rules).is_allowed() && !decide(&user, &no, &rules).is_allowed());
    measure("allowed", 1_000, || {
        black_box(decide(black_box(&user), black_box(&yes), &rules));
    });
    measure("refused", 1_000, || {
        black_box(decide(black_box(&user), black_box(&no), &rules));
    });
    measure("compiled", 1, || {
        black_box(Rules::new(roles.iter().cloned(), bindings.iter().cloned()));
    });
}
