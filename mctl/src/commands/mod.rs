//! The commands, one file each.

pub mod agent;
pub mod agents;
pub mod api_resources;
pub mod apply;
mod applyset;
pub mod auth;
pub mod backup;
pub mod config;
pub mod cordon;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod doctor;
pub mod events;
pub mod get;
pub mod gone;
pub mod gpus;
pub mod image;
pub mod live;
pub mod logs;
pub mod run;
pub mod schema;
pub mod store;
pub mod token;
pub mod version;
pub mod wait;
pub mod why;
