//! Defaults.

use serde_json::Value;

pub fn limit_range(_: &mut Value) {}

pub fn priority_class(_: &mut Value) {}
