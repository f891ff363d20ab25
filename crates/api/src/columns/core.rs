//! Nodes, namespaces, configuration, events, leases, quotas.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, NONE, UNKNOWN, age, count, integer, list, name, or, text, wide};
use crate::printer;
use crate::resource::Column;

fn len(value: &Value) -> usize {
    value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len)).unwrap_or(0)
}

pub const CONFIG_MAP: &[Column] = &[NAME, integer("Data"), AGE];

pub fn config_map(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(len(&o["data"]) + len(&o["binaryData"])), age(o, now)]
}

pub const SECRET: &[Column] = &[NAME, text("Type"), integer("Data"), AGE];

pub fn secret(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), o["type"].clone(), json!(len(&o["data"])), age(o, now)]
}

pub const SERVICE_ACCOUNT: &[Column] = &[NAME, integer("Secrets"), AGE];

pub fn service_account(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(len(&o["secrets"])), age(o, now)]
}

pub const NAMESPACE: &[Column] = &[NAME, text("Status"), AGE];

pub fn namespace(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), o["status"]["phase"].clone(), age(o, now)]
}

pub const LEASE: &[Column] = &[NAME, text("Holder"), AGE];

pub fn lease(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(or(&o["spec"]["holderIdentity"], "")), age(o, now)]
}

pub const RESOURCE_QUOTA: &[Column] = &[NAME, text("Request"), text("Limit"), AGE];

pub fn resource_quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let status = &o["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let text = format!("{resource}: {}/{}", or(&status["used"][resource], "0"), or(hard, "0"));
        if resource.starts_with("limits") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(o), json!(requests.join(", ")), json!(limits.join(", ")), age(o, now)]
}

pub const NODE: &[Column] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

pub fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let status = &o["status"];
    let info = &status["nodeInfo"];
    let address = |kind: &str| {
        let found = list(&status["addresses"]).iter().find(|a| a["type"] == kind);
        found.map_or(NONE, |a| or(&a["address"], NONE))
    };
    let known = |field: &str| json!(or(&info[field], UNKNOWN));
    vec![
        name(o),
        json!(node_status(o)),
        json!(roles(&o["metadata"]["labels"])),
        age(o, now),
        json!(or(&info["kubeletVersion"], "")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

fn node_status(o: &Value) -> String {
    let ready = list(&o["status"]["conditions"]).iter().find(|c| c["type"] == "Ready");
    let word = match ready.map(|c| &c["status"]) {
        Some(s) if s == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if o["spec"]["unschedulable"] == true { format!("{word},SchedulingDisabled") } else { word.into() }
}

fn roles(labels: &Value) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            _ if key == "kubernetes.io/role" => roles.extend(value.as_str().filter(|v| !v.is_empty())),
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.into() } else { roles.join(",") }
}

pub const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { name: "Name", kind: "string", format: "name", priority: 1 },
];

pub fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let given = |time: &'_ Value| time.as_str().is_some_and(|t| !t.is_empty());
    let first = if given(&o["firstTimestamp"]) { &o["firstTimestamp"] } else { &o["eventTime"] };
    let last = if given(&o["lastTimestamp"]) { &o["lastTimestamp"] } else { first };
    let series = &o["series"];
    let (last, times) = if series.is_object() { (&series["lastObservedTime"], &series["count"]) } else { (last, &o["count"]) };
    let about = &o["involvedObject"];
    let kind = or(&about["kind"], "").to_lowercase();
    let target = if given(&about["name"]) { format!("{kind}/{}", or(&about["name"], "")) } else { kind };
    vec![
        json!(printer::age_of(last, now)),
        o["type"].clone(),
        o["reason"].clone(),
        json!(target),
        json!(or(&about["fieldPath"], "")),
        json!(source(o)),
        json!(or(&o["message"], "").trim()),
        json!(printer::age_of(first, now)),
        json!(count(times).max(1)),
        name(o),
    ]
}

/// An event as `events.k8s.io` names its fields.
pub fn new_event(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut core = o.clone();
    crate::events::to_core(&mut core);
    event(&core, now)
}

fn source(o: &Value) -> String {
    let component = or(&o["source"]["component"], or(&o["reportingComponent"], ""));
    match or(&o["source"]["host"], or(&o["reportingInstance"], "")) {
        "" => component.into(),
        host => format!("{component}, {host}"),
    }
}
