//! Examples with known answers: the worked example of resource offers, the one of the DRF paper, and the conformance vectors of
//! the two-level model (fair shares, nested roles, weights, quotas).

mod cluster;

use cluster::{Cluster, amounts, id, lines, quota_amounts, task};
use muster_api::quantity::Scalar;

#[test]
fn what_the_first_framework_leaves_of_an_agent_is_offered_to_the_second() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants(
        "fw1",
        "one",
        vec![task("t1", amounts("2", 1024)), task("t2", amounts("1", 2048))],
    );
    cluster.wants("fw2", "two", vec![task("t3", amounts("1", 1024))]);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096"]);
    assert_eq!(
        lines(&cluster.pass()),
        Vec::<String>::new(),
        "an offer holds what is in it"
    );
    cluster.answer(|_| Some(amounts("3", 3072)));
    cluster.demand("fw1").tasks.clear();
    assert_eq!(lines(&cluster.pass()), ["a1>fw2 1/1024"]);
}

#[test]
fn dominant_shares_are_equal_in_the_example_of_the_paper() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "9", 18 * 1024);
    let (a, b) = (amounts("1", 4096), amounts("3", 1024));
    cluster.wants_all("a", "a").declared.as_mut().expect("declared").minimum = a;
    cluster.wants_all("b", "b").declared.as_mut().expect("declared").minimum = b;
    while !cluster.pass().is_empty() {
        cluster.answer(|offer| Some(if offer.framework == id("a") { a } else { b }));
    }
    assert_eq!((cluster.tasks_of("a"), cluster.tasks_of("b")), (3, 2));
}

#[test]
fn agents_go_to_the_smallest_share_roles_before_frameworks() {
    let mut cluster = Cluster::new();
    cluster.wants_all("fw1", "role1");
    cluster.agent("a1", "2", 1024);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 2/1024"]);
    cluster.wants_all("fw2", "role2");
    cluster.agent("a2", "1", 512);
    assert_eq!(lines(&cluster.pass()), ["a2>fw2 1/512"]);
    cluster.agent("a3", "3", 2048);
    assert_eq!(lines(&cluster.pass()), ["a3>fw2 3/2048"]);
    cluster.wants_all("fw3", "role1");
    cluster.agent("a4", "4", 4096);
    assert_eq!(lines(&cluster.pass()), ["a4>fw3 4/4096"]);
    cluster.wants_all("fw4", "role1");
    cluster.agent("a5", "1", 512);
    assert_eq!(lines(&cluster.pass()), ["a5>fw2 1/512"]);
}

#[test]
fn a_nested_role_competes_with_the_share_of_its_parent() {
    let mut cluster = Cluster::new();
    cluster.wants_all("fw1", "a/b");
    cluster.agent("a1", "2", 1024);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 2/1024"]);
    cluster.wants_all("fw2", "a/c");
    cluster.wants_all("fw3", "d/e");
    cluster.agent("a2", "1", 512);
    assert_eq!(lines(&cluster.pass()), ["a2>fw3 1/512"]);
    cluster.wants_all("fw4", "d/f");
    cluster.agent("a3", "2", 1024);
    assert_eq!(lines(&cluster.pass()), ["a3>fw4 2/1024"]);
}

#[test]
fn frameworks_of_a_role_itself_compete_with_the_roles_below_it() {
    let mut cluster = Cluster::new();
    cluster.wants_all("own", "a");
    cluster.wants_all("below", "a/b");
    for agent in ["a1", "a2", "a3", "a4"] {
        cluster.agent(agent, "1", 512);
    }
    assert_eq!(
        lines(&cluster.pass()),
        ["a1>own 1/512", "a2>below 1/512", "a3>own 1/512", "a4>below 1/512"]
    );
}

#[track_caller]
fn check_weights(weights: &[(&str, u32)], expect: &[usize]) {
    let mut cluster = Cluster::new();
    for agent in 1..=6 {
        cluster.agent(&format!("a{agent}"), "2", 1024);
    }
    for (role, weight) in weights {
        cluster.wants_all(role, role);
        cluster.quota(role).weight = Scalar::from_units(*weight);
    }
    let offers = cluster.pass();
    let count = |role: &str| offers.iter().filter(|offer| offer.role == role).count();
    assert_eq!(weights.iter().map(|(role, _)| count(role)).collect::<Vec<_>>(), expect);
}

#[test]
fn agents_are_shared_by_weight() {
    check_weights(&[("one", 1), ("two", 1)], &[3, 3]);
    check_weights(&[("one", 1), ("two", 2)], &[2, 4]);
    check_weights(&[("one", 1), ("two", 2), ("xtr", 3)], &[1, 2, 3]);
}

#[test]
fn equals_take_turns_when_offers_come_back() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "2", 1024);
    cluster.wants_all("fw1", "role");
    cluster.wants_all("fw2", "role");
    let mut counts = [0, 0];
    for _ in 0..10 {
        let offers = cluster.pass();
        assert_eq!(offers.len(), 1);
        let name = offers[0].framework.name.clone();
        counts[usize::from(name == "fw2")] += 1;
        cluster.demand(&name).offers_made += 1;
        cluster.answer(|_| None);
    }
    assert_eq!(counts, [5, 5]);
}

#[test]
fn an_agent_is_cut_to_the_quota_and_the_rest_goes_to_others() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "1", 512);
    cluster.wants_all("fw1", "quota");
    cluster.wants_all("fw2", "other");
    let quota = cluster.quota("quota");
    (quota.guarantee, quota.limit) = (quota_amounts("0.5", 200), quota_amounts("0.5", 200));
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 0.5/200", "a1>fw2 0.5/312"]);
}

#[test]
fn a_guarantee_ends_starvation_by_one_that_always_declines() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "2", 1024);
    cluster.agent("a2", "2", 1024);
    cluster.wants_all("hungry", "hungry");
    cluster.wants_all("picky", "picky");
    // One agent's worth runs for the hungry one; the picky one declines for no time at all, and so is always asked first.
    cluster.agent_named("a1").tasks.push(muster_allocator::Held {
        framework: id("hungry"),
        role: "hungry".into(),
        bundle: muster_api::resources::Bundle {
            cpus: Scalar::from_units(2),
            memory: muster_api::quantity::ByteSize::from_mib(1024),
            ..Default::default()
        },
    });
    for _ in 0..3 {
        assert_eq!(lines(&cluster.pass()), ["a2>picky 2/1024"]);
        cluster.answer(|_| None);
    }
    cluster.quota("hungry").guarantee = quota_amounts("4", 2048);
    assert_eq!(lines(&cluster.pass()), ["a2>hungry 2/1024"]);
}

#[test]
fn a_guarantee_of_a_role_without_frameworks_holds_back_a_whole_agent() {
    let mut cluster = Cluster::new();
    cluster.quota("absent").guarantee = quota_amounts("2", 1024);
    cluster.wants_all("fw1", "other");
    cluster.agent("a1", "2", 1024);
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
    cluster.agent("a2", "2", 1024);
    let offers = cluster.pass();
    assert_eq!(offers.len(), 1, "one of two equal agents is enough for the guarantee");
    assert_eq!(offers[0].bundle.amounts(), amounts("2", 1024));
    cluster.answer(|_| Some(amounts("2", 1024)));
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
}

#[test]
fn guarantees_nest() {
    let mut cluster = Cluster::new();
    cluster.quota("ml").guarantee = quota_amounts("3", 3072);
    cluster.quota("ml/train").guarantee = quota_amounts("2", 2048);
    cluster.wants_all("serve", "ml/serve");
    cluster.wants_all("web", "web");
    cluster.agent("a1", "4", 4096);
    // ml/serve may fill what ml is guaranteed beyond ml/train, and takes the surplus of 1 along; 2 are kept for ml/train.
    assert_eq!(lines(&cluster.pass()), ["a1>serve 2/2048"]);
    cluster.wants_all("train", "ml/train");
    assert_eq!(lines(&cluster.pass()), ["a1>train 2/2048"]);
}
