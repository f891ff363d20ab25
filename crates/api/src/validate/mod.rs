//! Validation.

use serde_json::Value;

use crate::Cause;

pub mod config;
pub mod core;
pub mod endpoints;
pub mod event;
pub mod ingress;
pub mod node;
pub mod pod;
pub mod policy;
pub mod rbac;
pub mod service;
pub mod workloads;

pub fn metadata_only(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn review(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
