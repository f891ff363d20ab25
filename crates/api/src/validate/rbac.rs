//! Validation.

use serde_json::Value;

use crate::Cause;

pub fn cluster_role(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn cluster_role_binding(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn role(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

pub fn role_binding(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}
