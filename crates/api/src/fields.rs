//! What field selectors may name beyond `metadata.name` and `metadata.namespace`, kind by kind.
//!
//! Given `null`, each function still names its fields: that is how a selector is checked.

use serde_json::Value;

type Fields = Vec<(&'static str, String)>;

/// A scalar as a selector compares it; what is absent is empty.
fn text(object: &Value, path: &str) -> String {
    match path.split('.').fold(object, |v, part| &v[part]) {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn paths(object: &Value, paths: &[&'static str]) -> Fields {
    paths.iter().map(|p| (*p, text(object, p))).collect()
}

/// What is absent is `absent`: booleans and numbers that are left out when they are zero.
fn with_zero(object: &Value, path: &'static str, absent: &str) -> (&'static str, String) {
    let found = text(object, path);
    (path, if found.is_empty() { absent.into() } else { found })
}

pub fn none(_: &Value) -> Fields {
    vec![]
}

pub fn pod(object: &Value) -> Fields {
    let mut fields = paths(
        object,
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
    );
    fields.push(with_zero(object, "spec.hostNetwork", "false"));
    fields
}

pub fn node(object: &Value) -> Fields {
    vec![with_zero(object, "spec.unschedulable", "false")]
}

pub fn namespace(object: &Value) -> Fields {
    paths(object, &["status.phase"])
}

pub fn secret(object: &Value) -> Fields {
    paths(object, &["type"])
}

pub fn service(object: &Value) -> Fields {
    paths(object, &["spec.clusterIP", "spec.type"])
}

pub fn replica_set(object: &Value) -> Fields {
    vec![with_zero(object, "status.replicas", "0")]
}

pub fn event(object: &Value) -> Fields {
    let mut fields = paths(
        object,
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "type",
        ],
    );
    let source = text(object, "source.component");
    fields.push(("source", if source.is_empty() { text(object, "reportingComponent") } else { source }));
    fields
}

pub fn new_event(object: &Value) -> Fields {
    paths(
        object,
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
    )
}
