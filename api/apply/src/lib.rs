//! Who owns which field of an object, and how objects of several writers are merged.
//!
//! Everybody who writes an object owns the fields that they wrote; the object carries a list of owners, `metadata.managedFields`. Who
//! *applies* says everything that they have an opinion about: what they said before and leave out now goes, unless somebody else
//! owns it too, and what somebody else owns and holds another opinion about is a conflict. Everybody else takes what they change.
//! The rules are those of Kubernetes' server-side apply, for a server with one version of each kind.
//!
//! The parts: [`Set`], a set of paths and its algebra; [`Schema`], what an OpenAPI schema says about how values merge; sets from
//! objects, comparison and merging; [`Managed`], the owners; and [`strategic`] merge patches, which read the same
//! schemas.
//!
//! Everything here is a pure function of values. What must never happen here: a panic on any object or any set that a client can send, or an
//! answer that depends on the order in which independent owners came. Tested by cases, and by properties in `tests/properties.rs`.

mod element;
mod entry;
mod managed;
mod merge;
mod schema;
mod set;
pub mod strategic;
mod value;

pub use element::{Element, Path};
pub use entry::{DecodeError, Entry, Operation};
pub use managed::{Applied, Conflict, Managed, UPDATERS_MAX, Writer, conflict_message};
pub use merge::{merge, prune};
pub use schema::{Key, Schema, Type};
pub use set::{Set, SetError};
pub use value::{Comparison, Problem, compare, fields, problems};
