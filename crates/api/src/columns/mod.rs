//! What `kubectl get` shows of each kind: columns and cells.

use serde_json::{Value, json};

use crate::resource::Column;

pub mod core;
pub mod network;
pub mod pod;
pub mod rbac;
pub mod workloads;

pub const fn name() -> Column {
    Column { name: "Name", kind: "string", format: "name", priority: 0 }
}

pub const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

pub const CREATED_AT: &[Column] = &[name(), Column { name: "Created At", kind: "date", format: "", priority: 0 }];

pub fn created_at(object: &Value, _: jiff::Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
}

pub(crate) fn name_age(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), json!(crate::printer::age(object, now))]
}
