//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn limit_range(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn priority_class(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn resource_quota(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
