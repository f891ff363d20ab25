//! The daily verbs, one file a feature. Each is a client of the API like any other.

pub mod apply;
pub mod delete;
pub mod describe;
pub mod events;
pub mod exec;
pub mod get;
pub mod image;
pub mod logs;
pub mod manifests;
pub mod port_forward;
pub mod rollout;
pub mod status;
