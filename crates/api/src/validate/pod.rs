//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn pod(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
