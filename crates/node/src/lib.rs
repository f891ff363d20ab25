//! The agent: pods wanted and pods observed in, actions out; probes, volumes, logs, stats.
//!
//! ```text
//! Agent ── informer of this node's pods ──> one Worker a pod ── plan::pod_actions ──> tasks ── driver, network, images
//!   ├─ node object and Lease                      └─ plan::pod_status ──> pods/status
//!   └─ NodeHandler: logs, exec, attach, port-forward, stats
//! ```
//!
//! It decides nothing that `plan` can decide, knows no packaging (that is a driver's), and owns no process: what runs
//! outlives it, and is taken over by the next agent on the same directories.

mod agent;
mod collect;
mod config;
mod files;
pub mod images;
pub mod limits;
pub mod logs;
mod lookup;
mod machine;
mod node;
mod pod;
mod probe;
mod spec;
mod stats;
mod status_patch;
mod streams;
mod termination;
#[cfg(test)]
mod tests;
mod volumes;

pub use agent::Agent;
pub use config::{Capacity, Config, Leaving, Reserved};
