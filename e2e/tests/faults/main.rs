//! Faults on real processes: machines out of namespaces, signals, cut networks, disks that are slow or fail.
//!
//! Each test is a scenario of the fault catalogue, by its number. Whatever a scenario is about, at its end the recorded story of the
//! API servers must be consistent at every revision, every acknowledged write must be in it, and no task may have run twice, as
//! seen from outside. A scenario proves that its fault happened before it believes that it was survived.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod agents;
mod controllers;
mod disks;
mod etcd;
mod network;
mod offers;
mod restored;
mod server;
mod servers;
mod story;
mod tape;
mod world;
