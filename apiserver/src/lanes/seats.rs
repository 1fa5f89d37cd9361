//! Who may take a seat: the rules of one lane, pure.
//!
//! A lane has a number of seats; a request has one while it is worked on. **Whoever has `n` seats gets another one while more than `n` are free.** So one
//! user alone gets at most half of them, `k` users that want as many as they can get 1/(k+1) of them each in the end, and as much stays free: who comes
//! seldom is seated at once. Requests that find no seat wait in their user's queue, first come first; when a seat is left, it goes to the user with
//! the fewest, and among those to the one that has waited longest for a turn.
//!
//! It promises: no more seats are taken than there are; nobody waits who could be seated; of one user, nobody overtakes; a user without a seat is
//! seated before any that has one; queues are bounded; whoever leaves, from a seat or from a queue, leaves nothing behind. What must never happen here:
//! a clock, I/O, an order that depends on hashes. Tested below, with random histories against those promises.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// How many there are of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seats.
    pub seats: usize,
    /// Requests that wait, of one user.
    pub waiting_of_user: usize,
    /// Requests that wait, of all users. The first one of a user waits whatever others do.
    pub waiting: usize,
}

/// A request that has a seat or waits for one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    user: Arc<str>,
    number: u64,
}

impl Ticket {
    /// Whose it is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What no other ticket of the lane has.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// What becomes of a request that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has a seat.
    Seated(Ticket),
    /// It waits for one.
    Waits(Ticket),
    /// Too many wait already.
    Refused(Refusal),
}

/// Who waits that there is no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// So many of the same user.
    OfUser(usize),
    /// So many of all users.
    OfAll(usize),
}

/// A user that has a seat or waits.
#[derive(Debug)]
struct Holder {
    name: Arc<str>,
    seats: usize,
    queue: VecDeque<u64>,
    /// When it last got a seat out of its queue, as a count.
    turn: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Seats {
    limits: Limits,
    taken: usize,
    /// Counts arrivals and turns, so that either can be said to be before the other.
    count: u64,
    users: HashMap<Arc<str>, Holder>,
    /// Users with somebody who waits, by how many seats they have and when they had their turn.
    turns: BTreeSet<(usize, u64, Arc<str>)>,
    /// The tickets that wait.
    waits: BTreeSet<u64>,
}

impl Seats {
    /// All of them free.
    pub fn new(limits: Limits) -> Seats {
        Seats {
            limits,
            taken: 0,
            count: 0,
            users: HashMap::new(),
            turns: BTreeSet::new(),
            waits: BTreeSet::new(),
        }
    }

    /// What it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many seats are taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// There may have been more of them a moment ago.
    fn free(&self) -> usize {
        self.limits.seats.saturating_sub(self.taken)
    }

    /// There are so many seats from now on. Whoever is seated keeps its seat; those who are seated now because there are more have to be told.
    pub fn resize(&mut self, seats: usize) -> Vec<Ticket> {
        self.limits.seats = seats;
        std::iter::from_fn(|| self.seat_next()).collect()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// A request of `user` comes. Whoever is seated or waits has to [`leave`](Seats::leave), once.
    pub fn arrive(&mut self, user: &str) -> Arrival {
        let free = self.free();
        self.count += 1;
        let number = self.count;
        if !self.users.contains_key(user) {
            let name: Arc<str> = user.into();
            self.users.insert(name.clone(), Holder::new(name));
        }
        let holder = self.users.get_mut(user).expect("it was put in if it was not there");
        let ticket = Ticket {
            user: holder.name.clone(),
            number,
        };
        if holder.queue.is_empty() && holder.seats < free {
            holder.seats += 1;
            self.taken += 1;
            return Arrival::Seated(ticket);
        }
        let waiting = self.waits.len();
        if holder.queue.len() >= self.limits.waiting_of_user.max(1) {
            return Arrival::Refused(Refusal::OfUser(holder.queue.len()));
        }
        if holder.queue.is_empty() {
            holder.turn = number;
            self.turns.insert(holder.place());
        } else if waiting >= self.limits.waiting {
            return Arrival::Refused(Refusal::OfAll(waiting));
        }
        holder.queue.push_back(number);
        self.waits.insert(number);
        Arrival::Waits(ticket)
    }

    /// A request leaves, from its seat or from its queue; whoever is seated then has to be told.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Ticket> {
        let holder = self
            .users
            .get_mut(&ticket.user)
            .expect("users stay while they have tickets");
        if self.waits.remove(&ticket.number) {
            holder.queue.retain(|waiting| *waiting != ticket.number);
            if holder.queue.is_empty() {
                self.turns.remove(&holder.place());
            }
        } else {
            let waits = !holder.queue.is_empty() && self.turns.remove(&holder.place());
            holder.seats -= 1;
            self.taken -= 1;
            if waits {
                self.turns.insert(holder.place());
            }
        }
        if holder.seats == 0 && holder.queue.is_empty() {
            self.users.remove(&ticket.user);
        }
        self.seat_next()
    }

    /// Seats whoever's turn it is. After one has left there is at most one who can be: everybody else who waits had at least as many seats as were free.
    fn seat_next(&mut self) -> Option<Ticket> {
        let (seats, _, _) = self.turns.first()?;
        if *seats >= self.free() {
            return None;
        }
        let (_, _, user) = self.turns.pop_first().expect("there is a first one");
        let holder = self.users.get_mut(&user).expect("users stay while they wait");
        let number = holder.queue.pop_front().expect("those with a turn wait");
        self.waits.remove(&number);
        self.taken += 1;
        self.count += 1;
        holder.seats += 1;
        holder.turn = self.count;
        if !holder.queue.is_empty() {
            self.turns.insert(holder.place());
        }
        Some(Ticket { user, number })
    }
}

impl Holder {
    fn new(name: Arc<str>) -> Holder {
        Holder {
            name,
            seats: 0,
            queue: VecDeque::new(),
            turn: 0,
        }
    }

    /// Where it stands among those that wait.
    fn place(&self) -> (usize, u64, Arc<str>) {
        (self.seats, self.turn, self.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn seats(seats: usize) -> Seats {
        Seats::new(Limits {
            seats,
            waiting_of_user: 4,
            waiting: 8,
        })
    }

    #[track_caller]
    fn seated(arrival: Arrival) -> Ticket {
        match arrival {
            Arrival::Seated(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn waits(arrival: Arrival) -> Ticket {
        match arrival {
            Arrival::Waits(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flood_leaves_half_of_the_seats_to_others_who_are_seated_at_once() {
        let mut lane = seats(8);
        let flood: Vec<Ticket> = (0..4).map(|_| seated(lane.arrive("flood"))).collect();
        let waiting: Vec<Ticket> = (0..4).map(|_| waits(lane.arrive("flood"))).collect();
        assert_eq!(lane.arrive("flood"), Arrival::Refused(Refusal::OfUser(4)));
        let jo = seated(lane.arrive("jo"));
        assert_eq!((lane.taken(), lane.waiting()), (5, 4));
        // What jo leaves does not go to the flood, what the flood leaves does, in order.
        assert_eq!(lane.leave(jo), None);
        let [first, ..] = &flood[..] else { panic!() };
        assert_eq!(lane.leave(first.clone()), Some(waiting[0].clone()));
    }

    #[test]
    fn whoever_has_the_fewest_seats_is_next() {
        let mut lane = seats(2);
        let (a, b) = (seated(lane.arrive("a")), seated(lane.arrive("b")));
        let more = waits(lane.arrive("a"));
        let c = waits(lane.arrive("c"));
        let d = waits(lane.arrive("d"));
        assert_eq!(lane.leave(b), Some(c.clone()), "a has a seat already, and d came later");
        assert_eq!(lane.leave(c), Some(d.clone()));
        assert_eq!(lane.leave(d), None, "one is free, and a has one");
        assert_eq!(lane.leave(a), Some(more));
    }

    #[test]
    fn the_first_request_of_a_user_waits_whatever_others_do() {
        let mut lane = seats(1);
        let only = seated(lane.arrive("a"));
        for user in ["b", "c"] {
            for _ in 0..4 {
                waits(lane.arrive(user));
            }
        }
        waits(lane.arrive("d"));
        assert_eq!(lane.arrive("d"), Arrival::Refused(Refusal::OfAll(9)));
        assert_eq!(lane.leave(only).unwrap().user(), "b");
    }

    #[test]
    fn whoever_goes_away_while_it_waits_is_not_seated() {
        let mut lane = seats(1);
        let first = seated(lane.arrive("a"));
        let (gone, next) = (waits(lane.arrive("b")), waits(lane.arrive("c")));
        assert_eq!(lane.leave(gone), None);
        assert_eq!(lane.leave(first), Some(next.clone()));
        assert_eq!(lane.leave(next), None);
        assert_eq!((lane.taken(), lane.waiting(), lane.users.len()), (0, 0, 0));
    }

    #[test]
    fn seats_may_become_more_and_fewer() {
        let mut lane = seats(1);
        let first = seated(lane.arrive("a"));
        let (second, third) = (waits(lane.arrive("b")), waits(lane.arrive("c")));
        assert_eq!(lane.resize(3), [second.clone(), third.clone()]);
        assert_eq!(lane.resize(1), []);
        let fourth = waits(lane.arrive("d"));
        assert_eq!(lane.leave(first), None, "two are seated still");
        assert_eq!(lane.leave(second), None);
        assert_eq!(lane.leave(third), Some(fourth));
    }

    /// What may happen: somebody comes, or one of those that are there goes.
    #[derive(Clone, Debug)]
    enum Step {
        Come(u8),
        Go(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            // One user floods.
            3 => Just(Step::Come(0)),
            2 => (1u8..6).prop_map(Step::Come),
            4 => any::<prop::sample::Index>().prop_map(Step::Go),
        ]
    }

    /// Everybody who is there, by number: whose it is, and whether it has a seat.
    type There = BTreeMap<u64, (Ticket, bool)>;

    fn check(lane: &Seats, there: &There) -> Result<(), TestCaseError> {
        let mut held: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (ticket, seated) in there.values() {
            let count = held.entry(ticket.user()).or_default();
            *(if *seated { &mut count.0 } else { &mut count.1 }) += 1;
        }
        let taken: usize = held.values().map(|(seats, _)| seats).sum();
        let waiting: usize = held.values().map(|(_, waits)| waits).sum();
        prop_assert!(taken <= lane.limits.seats, "no more seats than there are");
        prop_assert_eq!(
            (lane.taken(), lane.waiting()),
            (taken, waiting),
            "nothing is forgotten, nothing is left behind"
        );
        prop_assert_eq!(lane.users.len(), held.len());
        let free = lane.limits.seats - taken;
        for (user, (seats, waits)) in &held {
            prop_assert!(*waits == 0 || *seats >= free, "{} waits and could be seated", user);
            prop_assert!(*waits <= lane.limits.waiting_of_user);
        }
        prop_assert!(waiting <= lane.limits.waiting + held.len());
        Ok(())
    }

    /// Who is seated must be the first of its user, and no user with fewer seats may wait.
    fn check_next(next: &Ticket, there: &There) -> Result<(), TestCaseError> {
        let of = |user: &str, with_seat: bool| {
            let found = there
                .values()
                .filter(|(ticket, seated)| ticket.user() == user && *seated == with_seat);
            found.map(|(ticket, _)| ticket.number).collect::<Vec<_>>()
        };
        let first = of(next.user(), false).first().copied();
        prop_assert_eq!(first, Some(next.number), "nobody overtakes");
        let seats = of(next.user(), true).len();
        for (ticket, seated) in there.values().filter(|(_, seated)| !seated) {
            prop_assert!(
                !seated && of(ticket.user(), true).len() >= seats,
                "the fewest seats first"
            );
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn whatever_happens_seats_are_shared_and_none_is_lost(count in 1usize..12, steps in prop::collection::vec(step(), 0..300)) {
            let mut lane = seats(count);
            let mut there = There::new();
            for step in steps {
                match step {
                    Step::Come(user) => match lane.arrive(&user.to_string()) {
                        Arrival::Seated(ticket) => drop(there.insert(ticket.number, (ticket, true))),
                        Arrival::Waits(ticket) => drop(there.insert(ticket.number, (ticket, false))),
                        Arrival::Refused(_) => {}
                    },
                    Step::Go(_) if there.is_empty() => {}
                    Step::Go(index) => {
                        let number = *there.keys().nth(index.index(there.len())).unwrap();
                        let (ticket, _) = there.remove(&number).unwrap();
                        if let Some(next) = lane.leave(ticket) {
                            check_next(&next, &there)?;
                            there.get_mut(&next.number).unwrap().1 = true;
                        }
                    }
                }
                check(&lane, &there)?;
            }
            while let Some((_, (ticket, _))) = there.pop_first() {
                if let Some(next) = lane.leave(ticket) {
                    there.get_mut(&next.number).unwrap().1 = true;
                }
            }
            check(&lane, &there)?;
        }

        #[test]
        fn whoever_asks_seldom_waits_for_few_however_many_flood(floods in 1usize..20, rounds in 1usize..200) {
            let mut lane = seats(4);
            let mut seated: VecDeque<Ticket> = VecDeque::new();
            let come = |lane: &mut Seats, seated: &mut VecDeque<Ticket>| {
                for flood in 0..floods {
                    while let Arrival::Seated(ticket) = lane.arrive(&format!("flood-{flood}")) {
                        seated.push_back(ticket);
                    }
                }
            };
            for _ in 0..rounds {
                come(&mut lane, &mut seated);
                let left = seated.pop_front().expect("floods are seated");
                seated.extend(lane.leave(left));
            }
            come(&mut lane, &mut seated);
            let seldom = match lane.arrive("seldom") {
                Arrival::Seated(_) => return Ok(()),
                Arrival::Waits(ticket) => ticket,
                Arrival::Refused(refusal) => panic!("{refusal:?}"),
            };
            // Only floods that had no seat when it came can be before it.
            for turn in 0..=floods {
                come(&mut lane, &mut seated);
                let left = seated.pop_front().expect("all seats are taken");
                match lane.leave(left) {
                    Some(next) if next == seldom => return Ok(()),
                    next => seated.extend(next),
                }
                prop_assert!(turn < floods, "it is seated by now");
            }
        }
    }
}
