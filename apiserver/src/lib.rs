//! The API server: routes, registry, watch hub, discovery, and the accept transaction.

pub mod resource;
