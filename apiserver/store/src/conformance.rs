//! Every promise of a [`Store`](crate::Store), stated once.
