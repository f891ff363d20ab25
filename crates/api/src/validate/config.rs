//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn config_map(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn secret(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
