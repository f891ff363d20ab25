//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn ingress(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn ingress_class(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
