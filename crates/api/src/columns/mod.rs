//! What `kubectl get` shows of each kind: columns, and the cells of one object in their order.
//!
//! Source: `k8s.io/kubernetes/pkg/printers/internalversion`. Cells are as wide as `-o wide` has them; columns of priority 1
//! are shown only then.

pub mod core;
pub mod network;
pub mod pod;
pub mod rbac;
pub mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::printer;
use crate::resource::Column;

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";
/// How many addresses, hosts or ports a cell shows before `+ N more...`.
const SHOWN_MAX: usize = 3;

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = text("Age");

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

const fn integer(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

/// Kinds without a printer of their own.
pub const CREATED_AT: &[Column] = &[NAME, Column { name: "Created At", kind: "date", format: "", priority: 0 }];

pub fn created_at(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value, now: Timestamp) -> Value {
    json!(printer::age(object, now))
}

/// A string, or what stands for none.
fn or<'v>(value: &'v Value, fallback: &'v str) -> &'v str {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or(fallback)
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// `a=1,b=2` of a map of labels.
fn labels(map: &Value) -> String {
    let each: Vec<String> = map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if each.is_empty() { NONE.into() } else { each.join(",") }
}

/// A `LabelSelector` as it is written in a query.
fn selector(selector: &Value) -> String {
    match crate::selector::Selector::from_value(selector) {
        Ok(s) if s.is_everything() => NONE.into(),
        Ok(s) if selector.is_object() => s.to_string(),
        Ok(_) => NONE.into(),
        Err(_) => "<error>".into(),
    }
}

/// `a,b,c + 2 more...`
fn shortened(all: &[String], none: &str) -> String {
    let shown = all[..all.len().min(SHOWN_MAX)].join(",");
    match all.len() {
        0 => none.into(),
        n if n > SHOWN_MAX => format!("{shown} + {} more...", n - SHOWN_MAX),
        _ => shown,
    }
}

/// The names and the images of a pod spec's containers.
fn containers(pod_spec: &Value) -> [String; 2] {
    ["name", "image"].map(|field| list(&pod_spec["containers"]).iter().map(|c| or(&c[field], "")).collect::<Vec<_>>().join(","))
}

/// The addresses or host names of a load balancer.
fn balancer(status: &Value) -> String {
    let ingress = list(&status["loadBalancer"]["ingress"]);
    let one = |i: &Value| or(&i["ip"], or(&i["hostname"], "")).to_string();
    ingress.iter().map(one).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
