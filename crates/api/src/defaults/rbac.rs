//! Defaults.

use serde_json::Value;

pub fn binding(_: &mut Value) {}
