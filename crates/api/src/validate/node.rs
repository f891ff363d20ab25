//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn node(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn runtime_class(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
