//! Defaults.

use serde_json::Value;

pub fn deployment(_: &mut Value) {}

pub fn replica_set(_: &mut Value) {}
