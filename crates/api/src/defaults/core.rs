//! Namespaces, nodes, Secrets, accounts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{absent, ensure, set};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub fn namespace(object: &mut Value) {
    if let Some(name) = object["metadata"]["name"].as_str().map(String::from)
        && let Some(labels) = ensure(&mut object["metadata"], "labels")
    {
        labels[NAME_LABEL] = name.into();
    }
    ensure(object, "spec");
    if let Some(status) = ensure(object, "status") {
        set(status, "phase", "Active");
    }
}

pub fn node(object: &mut Value) {
    if let Some(status) = object.get_mut("status").filter(|s| s.is_object())
        && absent(status, "allocatable")
        && !absent(status, "capacity")
    {
        status["allocatable"] = status["capacity"].clone();
    }
}

/// `stringData` is a way to write `data`; it is never stored.
pub fn secret(object: &mut Value) {
    set(object, "type", "Opaque");
    let Some(given) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
    let Some(given) = given.as_object().filter(|g| !g.is_empty()) else { return };
    let Some(data) = ensure(object, "data").and_then(Value::as_object_mut) else { return };
    for (key, value) in given {
        data.insert(key.clone(), STANDARD.encode(value.as_str().unwrap_or_default()).into());
    }
}
