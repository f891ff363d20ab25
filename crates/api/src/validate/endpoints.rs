//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn endpoint_slice(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn endpoints(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
