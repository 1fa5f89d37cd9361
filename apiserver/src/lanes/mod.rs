//! Who is served when more is asked for than can be done at once: a few lanes with seats of their own, and within each a fair share for every user.
//!
//! A request takes a seat of its lane while it is worked on, until its answer begins, and waits for one when there is none; what waits in vain, or finds
//! too many waiting, is told to come again (429, `Retry-After`). The lanes:
//!
//! | lane | who | why it is one |
//! |---|---|---|
//! | exempt | health, and masters | whoever repairs the cluster is not held up by what breaks it |
//! | leases | heartbeats and elections, of anybody | agents and leaders vanish when they are late |
//! | system | agents, controllers and servers, for everything else | what runs is not held up by what people ask for |
//! | users | everybody else, nobody in particular included | |
//!
//! What goes on after its answer began (watches, logs, streams) holds no seat; it is counted for its user and bounded. How seats are shared is in
//! [`seats`], pure; here are only the clock, the locks and the words.
//!
//! It promises: a request that is dropped, wherever it is, leaves its seat or its place; a lane that is full holds up no other. What must never happen
//! here: work under a lock, a seat that is held by nobody. Tested below and in `tests/lanes.rs`.

mod args;
pub mod seats;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::auth::User;
use crate::error::{ApiError, Result};
use crate::limits;
use crate::tls::CLIENT_NAME;

pub use args::LaneArgs;
use seats::{Arrival, Refusal, Seats, Ticket};

/// What an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests of users that are worked on at once, those of masters, agents and controllers aside.
    pub seats: usize,
    /// Watches and streams of one user that are open at once.
    pub lasting: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            seats: limits::USERS_SEATS,
            lasting: limits::LASTING_OF_USER,
        }
    }
}

/// Where a request belongs. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// No seat is needed.
    Exempt,
    /// Heartbeats and elections.
    Leases,
    /// The control plane.
    System,
    /// Everybody else.
    Users,
}

impl Lane {
    /// All, in the order in which they are shown.
    pub const ALL: [Lane; 4] = [Lane::Exempt, Lane::Leases, Lane::System, Lane::Users];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Exempt => "exempt",
            Lane::Leases => "leases",
            Lane::System => "system",
            Lane::Users => "users",
        }
    }

    /// The lane of a request of `user`: `health` when it asks how the server is, `lease` when it keeps or wins one.
    pub fn of(user: &User, health: bool, lease: bool) -> Lane {
        if health || user.is_master() {
            Lane::Exempt
        } else if lease && !user.is_anonymous() {
            Lane::Leases
        } else if user.agent_name().is_some() || user.is_controllers() || user.name == CLIENT_NAME {
            Lane::System
        } else {
            Lane::Users
        }
    }
}

/// What happens in a lane at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Seats that there are; 0: nobody counts.
    pub seats: usize,
    /// Requests that are worked on.
    pub seated: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Watches and streams that are open.
    pub lasting: usize,
    /// Requests that were told to come again, so far.
    pub refused: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Lanes {
    /// Of users.
    lasting_max: AtomicUsize,
    /// By the order of [`Lane::ALL`].
    rooms: [Arc<Room>; 4],
}

/// One lane.
#[derive(Debug)]
struct Room {
    /// How long a request waits for a seat.
    wait: Duration,
    inner: Mutex<Inner>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    seats: Seats,
    /// How whoever waits is told that it is seated.
    waiting: HashMap<u64, oneshot::Sender<()>>,
    /// What lasts, by user.
    lasting: HashMap<Arc<str>, usize>,
}

/// A seat, or a place in a queue; dropping it leaves either.
#[derive(Debug)]
#[must_use]
pub struct Seat {
    room: Arc<Room>,
    ticket: Option<Ticket>,
}

/// What lasts; dropping it ends that.
#[derive(Debug)]
#[must_use]
pub struct Stay {
    room: Arc<Room>,
    user: Arc<str>,
}

impl Lanes {
    /// All lanes, empty.
    pub fn new(limits: Limits) -> Lanes {
        let room = |seats: seats::Limits, wait| {
            Arc::new(Room {
                wait,
                inner: Mutex::new(Inner {
                    seats: Seats::new(seats),
                    waiting: HashMap::new(),
                    lasting: HashMap::new(),
                }),
                refused: AtomicU64::new(0),
            })
        };
        let lanes = Lanes {
            lasting_max: AtomicUsize::new(0),
            rooms: [
                room(limits::EXEMPT, Duration::ZERO),
                room(limits::LEASES, limits::LEASE_WAIT),
                room(limits::SYSTEM, limits::SEAT_WAIT),
                room(limits::USERS, limits::SEAT_WAIT),
            ],
        };
        lanes.limit_by(limits);
        lanes
    }

    /// Does so much at once from now on.
    pub fn limit_by(&self, limits: Limits) {
        self.lasting_max.store(limits.lasting, Ordering::Relaxed);
        let mut inner = self.room(Lane::Users).lock();
        for seated in inner.seats.resize(limits.seats.max(1)) {
            inner.tell(&seated);
        }
    }

    fn room(&self, lane: Lane) -> &Arc<Room> {
        &self.rooms[lane as usize]
    }

    /// Takes a seat for a request of `user`, as soon as there is one for it.
    pub async fn enter(&self, lane: Lane, user: &str) -> Result<Seat> {
        let room = self.room(lane);
        let (seat, told) = match room.arrive(user) {
            Ok((seat, None)) => return Ok(seat),
            Ok((seat, Some(told))) => (seat, told),
            Err(refusal) => {
                let who = match refusal {
                    Refusal::OfUser(count) => format!("{count} requests of {user} wait already"),
                    Refusal::OfAll(count) => format!("{count} requests wait already"),
                };
                return Err(room.refuse(&who, limits::COME_AGAIN_SECONDS));
            }
        };
        match tokio::time::timeout(room.wait, told).await {
            Ok(Ok(())) => Ok(seat),
            _ => {
                let who = format!("a request of {user} had no turn within {} s", room.wait.as_secs());
                Err(room.refuse(&who, limits::COME_AGAIN_SECONDS))
            }
        }
    }

    /// Counts a watch or a stream of `user` for as long as the result lives. Only the lane of users bounds them.
    pub fn stay(&self, lane: Lane, user: &str) -> Result<Stay> {
        let room = self.room(lane);
        let mut inner = room.lock();
        let name = match inner.lasting.get_key_value(user) {
            Some((name, count)) if lane == Lane::Users && *count >= self.lasting_max.load(Ordering::Relaxed) => {
                let who = format!(
                    "{count} watches and streams of {name} are open, which is the most (--max-streams-per-user)"
                );
                drop(inner);
                return Err(room.refuse(&who, limits::COME_LATER_SECONDS));
            }
            Some((name, _)) => name.clone(),
            None => user.into(),
        };
        *inner.lasting.entry(name.clone()).or_default() += 1;
        drop(inner);
        Ok(Stay {
            room: room.clone(),
            user: name,
        })
    }

    /// What happens in a lane.
    pub fn census(&self, lane: Lane) -> Census {
        let room = self.room(lane);
        let inner = room.lock();
        Census {
            seats: if lane == Lane::Exempt {
                0
            } else {
                inner.seats.limits().seats
            },
            seated: inner.seats.taken(),
            waiting: inner.seats.waiting(),
            lasting: inner.lasting.values().sum(),
            refused: room.refused.load(Ordering::Relaxed),
        }
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seat, or a place in the queue and how one is told that it is one's turn.
    fn arrive(self: &Arc<Self>, user: &str) -> Result<(Seat, Option<oneshot::Receiver<()>>), Refusal> {
        let mut inner = self.lock();
        let (ticket, told) = match inner.seats.arrive(user) {
            Arrival::Seated(ticket) => (ticket, None),
            Arrival::Waits(ticket) => {
                let (tell, told) = oneshot::channel();
                inner.waiting.insert(ticket.number(), tell);
                (ticket, Some(told))
            }
            Arrival::Refused(refusal) => return Err(refusal),
        };
        drop(inner);
        let seat = Seat {
            room: self.clone(),
            ticket: Some(ticket),
        };
        Ok((seat, told))
    }

    /// The words that users of kubectl know, and then why.
    fn refuse(&self, why: &str, seconds: u32) -> ApiError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let message = format!(
            "the server has received too many requests and has asked us to try again later: {why}; ask for less at a time. Nothing was done"
        );
        ApiError::too_many_requests(message, seconds)
    }
}

impl Inner {
    /// Tells whoever waits with this ticket that it is seated.
    fn tell(&mut self, ticket: &Ticket) {
        if let Some(tell) = self.waiting.remove(&ticket.number()) {
            // Whoever has just gone leaves the seat with its own ticket.
            let _ = tell.send(());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut inner = self.room.lock();
        // Without one, it had a seat.
        inner.waiting.remove(&ticket.number());
        if let Some(next) = inner.seats.leave(ticket) {
            inner.tell(&next);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut inner = self.room.lock();
        if let Some(count) = inner.lasting.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                inner.lasting.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn lanes(seats: usize) -> Lanes {
        Lanes::new(Limits { seats, lasting: 2 })
    }

    #[test]
    fn everybody_has_a_lane() {
        let (agent, controllers) = (User::agent("a"), User::controllers());
        let (jo, nobody) = (User::new("jo", &[]), User::anonymous());
        for (user, health, lease, expect) in [
            (&User::admin(), false, false, Lane::Exempt),
            (&nobody, true, false, Lane::Exempt),
            (&agent, false, true, Lane::Leases),
            (&jo, false, true, Lane::Leases),
            (&nobody, false, true, Lane::Users),
            (&agent, false, false, Lane::System),
            (&controllers, false, false, Lane::System),
            (&User::new(CLIENT_NAME, &[]), false, false, Lane::System),
            (&jo, false, false, Lane::Users),
            (&nobody, false, false, Lane::Users),
        ] {
            assert_eq!(Lane::of(user, health, lease), expect, "{user:?}");
        }
        for (index, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(
                (lane as usize, lanes(7).census(lane).seats),
                (index, [0, 64, 256, 7][index])
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_is_left_goes_to_whoever_waits_even_if_that_one_has_just_gone() {
        let lanes = lanes(1);
        let first = lanes.enter(Lane::Users, "a").await.unwrap();
        let mut second = Box::pin(lanes.enter(Lane::Users, "b"));
        let mut third = Box::pin(lanes.enter(Lane::Users, "c"));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        assert_eq!(lanes.census(Lane::Users).waiting, 2);
        drop(first);
        // It is told, and goes before it hears of it.
        drop(second);
        let seat = third.await.unwrap();
        assert_eq!(lanes.census(Lane::Users).seated, 1);
        drop(seat);
        assert_eq!(
            lanes.census(Lane::Users),
            Census {
                seats: 1,
                ..Census::default()
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_too_long_is_told_to_come_again() {
        let lanes = lanes(1);
        let seat = lanes.enter(Lane::Users, "a").await.unwrap();
        let error = lanes.enter(Lane::Users, "jo").await.unwrap_err();
        assert_eq!((error.code.as_u16(), error.reason), (429, "TooManyRequests"));
        assert_eq!(error.details.retry_after_seconds, Some(1));
        let begin = "the server has received too many requests and has asked us to try again later: a request of jo had no turn within";
        assert!(error.message.starts_with(begin), "{error}");
        let census = lanes.census(Lane::Users);
        assert_eq!((census.waiting, census.refused), (0, 1));
        drop(seat);
        drop(lanes.enter(Lane::Users, "jo").await.unwrap());
        // Another lane has seats of its own.
        let _seat = lanes.enter(Lane::Users, "a").await.unwrap();
        let _other = lanes.enter(Lane::Leases, "a").await.unwrap();
    }

    #[test]
    fn what_lasts_is_counted_for_its_user_and_bounded_for_users() {
        let lanes = lanes(1);
        let mut open: Vec<Stay> = (0..2).map(|_| lanes.stay(Lane::Users, "jo").unwrap()).collect();
        let error = lanes.stay(Lane::Users, "jo").unwrap_err();
        assert!(
            error.message.contains("2 watches and streams of jo are open"),
            "{error}"
        );
        assert_eq!(error.details.retry_after_seconds, Some(10));
        let _other = lanes.stay(Lane::Users, "al").unwrap();
        let _more: Vec<Stay> = (0..5).map(|_| lanes.stay(Lane::System, "jo").unwrap()).collect();
        open.pop();
        assert_eq!(lanes.census(Lane::Users).lasting, 2);
        open.push(lanes.stay(Lane::Users, "jo").unwrap());
        drop(open);
        assert_eq!(lanes.census(Lane::Users).lasting, 1);
    }
}
