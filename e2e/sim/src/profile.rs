//! What kinds of trouble a seed has.
//!
//! Trouble is drawn like everything else: each seed has some kinds and not others, because a storm of everything hides what two faults do
//! together (“swarm testing”). A profile says which kinds may be drawn, and how often things are done.

use std::str::FromStr;
use std::time::Duration;

use muster_store::{Faults, Lies};
use rand::Rng;
use rand::rngs::StdRng;

use crate::network::Weather;

/// A kind of trouble to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Any of it.
    #[default]
    Mixed,
    /// None of it: users, tasks, and processes that live.
    Calm,
    /// Leaders are stopped for up to three times their lease, and continued.
    Pauses,
    /// The store breaks its promises as etcd did in one version or another.
    Lies,
    /// The network is cut, in one direction or both.
    Partitions,
    /// Agents die, machines boot, and names are claimed twice.
    Machines,
    /// Wall clocks jump.
    Clocks,
    /// Many commits happen long after they failed.
    Late,
    /// Agents are stopped until they are lost, and the leader too, while frameworks answer their offers.
    Absences,
    /// Processes follow each other while what their predecessors sent is still on its way, and names come back at once.
    Successions,
    /// Many answers are lost.
    Answers,
    /// Many requests arrive seconds late, when their sender has long tried again, and names come back at once.
    Stragglers,
}

/// All of them.
pub const PROFILES: [Profile; 12] = [
    Profile::Mixed,
    Profile::Calm,
    Profile::Pauses,
    Profile::Lies,
    Profile::Partitions,
    Profile::Machines,
    Profile::Clocks,
    Profile::Late,
    Profile::Absences,
    Profile::Successions,
    Profile::Answers,
    Profile::Stragglers,
];

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        let known = PROFILES
            .into_iter()
            .find(|profile| format!("{profile:?}").eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("no profile {text}; there are {PROFILES:?}"))
    }
}

/// How often what is done, relative to each other.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is the deed of its name")]
pub struct Weights {
    pub create: u32,
    pub delete: u32,
    pub kill: u32,
    pub answer: u32,
    pub kill_agent: u32,
    pub reboot: u32,
    pub pause_agent: u32,
    pub kill_controllers: u32,
    pub pause_controllers: u32,
    pub pause_leader: u32,
    pub kill_server: u32,
    pub pause_server: u32,
    pub partition: u32,
    pub jump: u32,
    pub compact: u32,
    pub remove_agent: u32,
}

/// Everything that is drawn for a seed before it starts.
#[derive(Clone, Debug)]
pub struct Storm {
    /// API servers.
    pub servers: usize,
    /// Candidates for leadership.
    pub controllers: usize,
    /// Agents.
    pub agents: usize,
    /// Names that tasks are made under: few, so that names come back.
    pub names: usize,
    /// Whether a second machine claims the name of the first.
    pub duplicate: bool,
    /// Whether the tasks' role has a quota.
    pub quota: bool,
    /// What the network does.
    pub weather: Weather,
    /// What the store does.
    pub faults: Faults,
    /// What the store must not do, and does.
    pub lies: Lies,
    /// What is done.
    pub weights: Weights,
}

/// What users do.
const USERS: Weights = Weights {
    create: 45,
    delete: 15,
    kill: 6,
    answer: 18,
    kill_agent: 0,
    reboot: 0,
    pause_agent: 0,
    kill_controllers: 0,
    pause_controllers: 0,
    pause_leader: 0,
    kill_server: 0,
    pause_server: 0,
    partition: 0,
    jump: 0,
    compact: 0,
    remove_agent: 0,
};

/// A number up to `most`, or, in so many of the seeds, none.
fn some(random: &mut StdRng, often: f64, most: f64) -> f64 {
    if random.random_bool(often) {
        random.random_range(0.0..most)
    } else {
        0.0
    }
}

fn weather(random: &mut StdRng) -> Weather {
    Weather {
        lost: some(random, 0.5, 0.05),
        answer_lost: some(random, 0.5, 0.05),
        doubled: some(random, 0.5, 0.1),
        cut: some(random, 0.5, 0.03),
        moved: some(random, 0.5, 0.2),
        abandoned: some(random, 0.5, 1.0),
        straggles: some(random, 0.3, 0.02),
        delay_max: Duration::from_micros((some(random, 0.5, 1.0) * 40_000.0) as u64),
    }
}

fn faults(random: &mut StdRng) -> Faults {
    Faults {
        unavailable_before: some(random, 0.4, 0.03),
        unavailable_after: some(random, 0.4, 0.03),
        late_commit: some(random, 0.4, 0.1),
        delay: some(random, 0.4, 0.3),
        delay_max: Duration::from_millis(5 + (some(random, 0.4, 1.0) * 150.0) as u64),
        watch_cut: some(random, 0.4, 0.01),
        watch_repeat: some(random, 0.4, 0.02),
        lease_lost: some(random, 0.4, 0.02),
        compaction: some(random, 0.4, 0.01),
    }
}

fn lies(random: &mut StdRng, often: f64) -> Lies {
    Lies {
        watch_lost: some(random, often, 0.05),
        watch_swapped: some(random, often, 0.05),
        watch_rewound: some(random, often, 0.05),
        watch_anticipated: some(random, often, 0.05),
        stale_read: some(random, often, 0.05),
        lease_revoked: some(random, often, 0.02),
        lease_outlives: some(random, often, 0.5),
        keep_alive_of_the_dead: some(random, often, 0.5),
    }
}

/// What processes suffer, each kind in some of the seeds.
fn troubles(random: &mut StdRng, weights: &mut Weights) {
    let mut add = |weight: &mut u32, most: u32| {
        if random.random_bool(0.5) {
            *weight += random.random_range(1..=most);
        }
    };
    add(&mut weights.kill_agent, 6);
    add(&mut weights.reboot, 3);
    add(&mut weights.pause_agent, 5);
    add(&mut weights.kill_controllers, 5);
    add(&mut weights.pause_controllers, 6);
    add(&mut weights.pause_leader, 6);
    add(&mut weights.kill_server, 3);
    add(&mut weights.pause_server, 4);
    add(&mut weights.partition, 8);
    add(&mut weights.jump, 3);
    add(&mut weights.compact, 3);
    add(&mut weights.remove_agent, 1);
}

impl Profile {
    /// Draws the trouble of one seed.
    pub fn draw(self, random: &mut StdRng) -> Storm {
        let mut storm = Storm {
            servers: random.random_range(1..4),
            controllers: random.random_range(1..4),
            agents: random.random_range(1..4),
            names: 12,
            duplicate: false,
            // Quotas span agents, and an agent's ledger guards its own: what lands late is where they could be exceeded.
            quota: random.random_bool(if self == Profile::Late { 0.9 } else { 0.4 }),
            weather: Weather::default(),
            faults: Faults::none(),
            lies: Lies::none(),
            weights: USERS,
        };
        if self != Profile::Calm {
            storm.weather = weather(random);
            storm.faults = faults(random);
        }
        let weights = &mut storm.weights;
        match self {
            Profile::Mixed => {
                troubles(random, weights);
                storm.lies = lies(random, 0.2);
                storm.duplicate = random.random_bool(0.1);
            }
            Profile::Calm => {}
            Profile::Pauses => {
                storm.controllers = random.random_range(2..4);
                weights.pause_leader = 14;
                weights.pause_server = 2;
            }
            Profile::Lies => {
                storm.lies = lies(random, 0.7);
                weights.compact = 3;
                weights.kill_controllers = 3;
            }
            Profile::Partitions => weights.partition = 20,
            Profile::Machines => {
                storm.duplicate = random.random_bool(0.4);
                (weights.kill_agent, weights.reboot, weights.pause_agent) = (10, 6, 6);
                weights.remove_agent = 1;
            }
            Profile::Late => {
                storm.faults.late_commit = 0.2;
                storm.faults.delay_max = Duration::from_millis(150);
            }
            Profile::Absences => {
                (weights.pause_agent, weights.pause_leader, weights.answer) = (14, 10, 30);
            }
            Profile::Successions => {
                storm.names = 3;
                storm.servers = random.random_range(2..4);
                storm.faults.late_commit = 0.2;
                storm.faults.delay_max = Duration::from_millis(150);
                storm.weather.abandoned = 0.0;
                (weights.kill_agent, weights.reboot, weights.kill_controllers) = (14, 4, 6);
                (weights.partition, weights.pause_server, weights.delete) = (14, 6, 30);
            }
            Profile::Stragglers => {
                storm.names = 2;
                storm.weather.straggles = 0.15;
                storm.weather.abandoned = 0.0;
                (weights.delete, weights.kill) = (30, 15);
            }
            Profile::Answers => {
                storm.weather.answer_lost = 0.15;
                storm.faults.unavailable_after = 0.1;
                weights.answer = 40;
            }
            Profile::Clocks => {
                weights.jump = 12;
                weights.kill_controllers = 3;
                weights.kill_agent = 3;
            }
        }
        storm
    }
}
