//! The Kubernetes API as data and pure functions: no I/O, no async, no clock, no chance.
//!
//! A kind is a row of [`table`]; everything the server does with it follows from the row and from the schema facts.
//! Objects are untyped `serde_json::Value`s here; typed structs live with controllers and the node.

pub mod apply;
pub mod columns;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod events;
pub mod fields;
pub mod fieldset;
pub mod limits;
pub mod managed;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod printer;
pub mod quantity;
pub mod rbac;
pub mod resource;
pub mod schema;
pub mod selector;
mod shape;
pub mod status;
pub mod table;
mod typed;
pub mod validate;

pub use resource::{Resource, Scope};
pub use serde_json::Value;
pub use status::{Cause, Reason, Status};
