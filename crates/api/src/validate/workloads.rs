//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn controller_revision(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn deployment(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn replica_set(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
