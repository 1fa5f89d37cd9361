//! The API server: routes, registry, watch hub, discovery, and the accept transaction.
//!
//! It speaks the Kubernetes API over one [`muster_store::Store`]: objects go in through a strategy per kind and come out of the
//! hub, which follows the store and hands out their bytes. It promises: no write without a compare; a reply to a write only
//! when the writer can read it back; nothing half-done. What must never happen here: ambient time or randomness, a blocking
//! call, an object in the store that its schema does not allow. The router is tested in-process through `tower`, on a paused clock.

pub mod accept;
pub mod accounts;
pub mod allocator;
pub mod audit;
pub mod auth;
mod background;
pub mod body;
pub mod cluster;
pub mod custom;
pub mod discovery;
pub mod documents;
pub mod error;
pub mod etcd_args;
pub mod files;
mod granted;
pub mod hub;
pub mod keys;
pub mod kinds;
pub mod kubeconfig;
pub mod lanes;
pub mod launch;
pub mod limits;
pub mod logs;
pub mod membership;
pub mod negotiate;
mod newest;
pub mod openapi;
pub mod params;
pub mod patch;
pub mod peers;
mod presence;
pub mod rbac;
pub mod registry;
pub mod resource;
pub mod restore;
mod revoked;
pub mod routes;
pub mod schema;
pub mod selector;
pub mod server;
pub mod state;
pub mod streams;
pub mod table;
pub mod tls;
mod unread;
mod usage;
mod views;

pub use routes::router;
pub use state::{Config, StartError, State};
