//! The whole cluster in one thread on virtual time, with seeded faults and invariants checked after every step.
