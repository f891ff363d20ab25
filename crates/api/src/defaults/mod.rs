//! Defaults.

use serde_json::Value;

pub mod core;
pub mod network;
pub mod pod;
pub mod policy;
pub mod rbac;
pub mod workloads;

pub fn none(_: &mut Value) {}
