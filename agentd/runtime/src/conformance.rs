//! Every promise of a [`Runtime`](crate::Runtime), stated once.
