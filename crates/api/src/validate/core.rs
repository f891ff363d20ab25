//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn lease(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn namespace(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn service_account(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
