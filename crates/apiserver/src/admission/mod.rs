//! Admission: what a write is turned into, or refused for, before it is validated. A table of functions by resource.
//!
//! Runs on creates and updates of whole objects, after defaulting. Knows the cluster's state through the cache only.

mod ingress;
mod limit_range;
mod namespace;
mod node;
mod pod;
mod service;

use std::sync::Arc;

use api::{Status, Value};
use ports::Identity;

use crate::Server;
use crate::server::RowRef;

pub use namespace::{check_delete, check_open};
pub use node::check_agent;
pub use service::Allocators;

/// One write, as admission sees it.
pub struct Admission<'a> {
    pub server: &'a Arc<Server>,
    pub who: &'a Identity,
    pub row: RowRef,
    pub namespace: &'a str,
    /// `None` on create.
    pub old: Option<&'a Value>,
}

type Step = fn(&Admission, &mut Value) -> Result<(), Status>;

/// By group and plural, in the order in which they run.
const STEPS: &[(&str, &str, Step)] = &[
    ("", "namespaces", namespace::admit),
    ("", "pods", pod::service_account),
    ("", "pods", pod::tolerations),
    ("", "pods", pod::priority),
    ("", "pods", pod::runtime_class),
    ("", "pods", limit_range::admit),
    ("", "pods", pod::begin),
    ("", "services", service::admit),
    ("networking.k8s.io", "ingresses", ingress::default_class),
];

/// What needs an await first: the `default` account of a new namespace is made here if no controller has yet.
pub async fn prepare(cx: &Admission<'_>, object: &Value) -> Result<(), Status> {
    if cx.row.plural == "pods" && cx.row.group.is_empty() && cx.old.is_none() {
        pod::ensure_account(cx, object).await?;
    }
    Ok(())
}

pub fn admit(cx: &Admission, object: &mut Value) -> Result<(), Status> {
    for (group, plural, step) in STEPS {
        if *group == cx.row.group && *plural == cx.row.plural {
            step(cx, object)?;
        }
    }
    if cx.row.group == crate::authz::GROUP {
        cx.server.rbac.check_escalation(cx.who, cx.row.plural, cx.namespace, object, cx.old)?;
    }
    Ok(())
}

/// `field` of an object as a list, made when it is absent.
pub fn list<'v>(object: &'v mut Value, field: &str) -> &'v mut Vec<Value> {
    if !object[field].is_array() {
        object[field] = Value::Array(Vec::new());
    }
    match &mut object[field] {
        Value::Array(items) => items,
        _ => unreachable!("made an array above"),
    }
}

pub fn items<'v>(object: &'v Value, field: &str) -> &'v [Value] {
    object[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// All containers of a pod spec, init containers first.
pub fn containers_mut(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    let mut lists = Vec::new();
    if let Some(map) = spec.as_object_mut() {
        for (key, value) in map.iter_mut() {
            if matches!(key.as_str(), "containers" | "initContainers")
                && let Value::Array(items) = value
            {
                lists.push(items);
            }
        }
    }
    lists.into_iter().flatten()
}
