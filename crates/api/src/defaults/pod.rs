//! Defaults.

use serde_json::Value;

pub fn pod(_: &mut Value) {}
