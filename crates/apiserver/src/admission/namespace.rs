//! The lifecycle of namespaces: nothing is made in one that ends, and some never end.

use api::{Cause, Status, Value};

use super::Admission;
use crate::state::State;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// New namespaces carry the finalizer that keeps them until they are empty.
pub fn admit(cx: &Admission, object: &mut Value) -> Result<(), Status> {
    if cx.old.is_none() {
        object["spec"]["finalizers"] = serde_json::json!(["kubernetes"]);
        object["status"] = serde_json::json!({ "phase": "Active" });
    }
    Ok(())
}

/// Whether something may be made in a namespace.
pub fn check_open(state: &State, group: &str, plural: &str, namespace: &str, name: &str) -> Result<(), Status> {
    let found = state.value(&format!("core/namespaces//{namespace}")).ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    if found["metadata"]["deletionTimestamp"].is_null() && found["status"]["phase"] != "Terminating" {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(group, plural, name, &why);
    if let Some(details) = &mut status.details {
        let message = format!("namespace {namespace} is being terminated");
        details.causes.push(Cause { reason: "NamespaceTerminating".into(), message, field: "metadata.namespace".into() });
    }
    Err(status)
}

pub fn check_delete(plural: &str, group: &str, name: &str) -> Result<(), Status> {
    if group.is_empty() && plural == "namespaces" && IMMORTAL.contains(&name) {
        return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}
