//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn core_event(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn new_event(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
