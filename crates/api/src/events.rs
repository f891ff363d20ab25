//! Events of two groups.

use serde_json::Value;

pub fn to_core(_: &mut Value) {}

pub fn from_core(_: &mut Value) {}
