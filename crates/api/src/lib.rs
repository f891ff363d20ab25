//! The Kubernetes API as data and pure functions: no I/O, no async, no clock, no chance.
//!
//! A kind is a row of [`table`]; everything the server does with it follows from the row and from the schema facts.
//! Objects are untyped `serde_json::Value`s here; typed structs live with controllers and the node.

pub mod decode;
pub mod discovery;
pub mod openapi;
pub mod printer;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod status;

pub use resource::{Resource, Scope};
pub use serde_json::Value;
pub use status::{Cause, Reason, Status};
