//! What a user may leave out, filled in as Kubernetes does, kind by kind.
//!
//! Runs on every object that is written, new or changed, and changes nothing when run again. Knows no allocation (addresses,
//! ports, accounts): that is admission. Source: `SetDefaults_…` in `k8s.io/kubernetes/pkg/apis/…/v1`.

pub mod core;
pub mod network;
pub mod pod;
pub mod policy;
pub mod rbac;
pub mod workloads;

use serde_json::{Map, Value};

pub fn none(_: &mut Value) {}

/// True where nothing was given.
fn absent(object: &Value, key: &str) -> bool {
    matches!(object.get(key), None | Some(Value::Null))
}

/// Sets a field that is absent. A string that is empty counts as absent, as in Go.
fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    let empty = matches!(object.get(key), None | Some(Value::Null)) || object.get(key).is_some_and(|v| v.as_str() == Some(""));
    if empty && let Some(map) = object.as_object_mut() {
        map.insert(key.into(), value.into());
    }
}

/// The object at a field, made where it is absent.
fn ensure<'v>(object: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    if absent(object, key) {
        object.as_object_mut()?.insert(key.into(), Value::Object(Map::new()));
    }
    within(object, key)
}

fn within<'v>(object: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    object.get_mut(key).filter(|v| v.is_object())
}

fn each<'v>(object: &'v mut Value, key: &str) -> impl Iterator<Item = &'v mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter(|v| v.is_object())
}

#[cfg(test)]
mod tests;
