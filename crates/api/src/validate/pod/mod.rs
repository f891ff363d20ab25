//! Pods and the pod specs of templates.

mod container;
mod handler;
mod placement;
mod security;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{At, Out, meta};
use crate::{Cause, names};

const DNS_POLICIES: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const INT32_MAX: i64 = i32::MAX as i64;
const FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn pod(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let at = At::root(new).get("spec");
    match old {
        // A status is written far more often than anything else, and the spec was checked when it came.
        Some(old) if old["spec"] == new["spec"] => {}
        Some(old) => {
            spec(&at, false, &mut out);
            changes(&at, &old["spec"], &mut out);
        }
        None => {
            spec(&at, false, &mut out);
            if at.get("ephemeralContainers").given() {
                out.forbidden(&at.get("ephemeralContainers"), "cannot be set on create");
            }
        }
    }
    out.0
}

/// A write of `pods/ephemeralcontainers`: containers are added, none is changed or taken away.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<Cause> {
    let mut out = Out::default();
    let at = At::root(new).get("spec");
    let added = at.get("ephemeralContainers");
    let before = old["spec"]["ephemeralContainers"].as_array().map_or(&[][..], Vec::as_slice);
    let named = |name: &Value| added.items().into_iter().find(|c| c.v["name"] == *name);
    for gone in before {
        match named(&gone["name"]) {
            None => out.forbidden(&added, &format!("existing ephemeral containers {} may not be removed", gone["name"])),
            Some(c) if c.v != gone => out.forbidden(&added, &format!("existing ephemeral containers {} may not be changed", gone["name"])),
            Some(_) => {}
        }
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        seen.extend(at.v[list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()));
    }
    let volumes = volumes_of(&at);
    for c in added.items() {
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"].iter().filter(|f| c.get(f).given()) {
            out.forbidden(&c.get(field), "cannot be set for an Ephemeral Container");
        }
        if c.get("resources.limits").given() || c.get("resources.requests").given() {
            out.forbidden(&c.get("resources"), "cannot be set for an Ephemeral Container");
        }
        let target = c.get("targetContainerName");
        if target.given() && !seen.contains(target.text()) {
            out.not_found(&target);
        }
        container::container(&c, container::Role::Ephemeral, &volumes, &mut out);
        if !seen.insert(c.get("name").text()) {
            out.duplicate(&c.get("name"));
        }
    }
    out.0
}

/// The names of the volumes.
fn volumes_of<'v>(spec: &At<'v>) -> BTreeSet<&'v str> {
    spec.v["volumes"].as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()).collect()
}

/// A pod spec, of a pod or of a `template`.
pub(super) fn spec(at: &At, template: bool, out: &mut Out) {
    volume::volumes(&at.get("volumes"), out);
    let volumes = volumes_of(at);
    containers(at, &volumes, out);
    out.some_of(&at.get("restartPolicy"), &["Always", "Never", "OnFailure"]);
    dns(at, out);
    if at.get("activeDeadlineSeconds").is_set() && !template {
        out.within(&at.get("activeDeadlineSeconds"), 1, INT32_MAX);
    }
    out.non_negative(&at.get("terminationGracePeriodSeconds"));
    for (field, rule) in [
        ("hostname", names::dns1123_label as fn(&str) -> Vec<String>),
        ("subdomain", names::dns1123_label),
        ("nodeName", names::dns1123_subdomain),
        ("serviceAccountName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        out.matches(&at.get(field), rule);
    }
    for secret in at.get("imagePullSecrets").items() {
        if !secret.get("name").given() {
            out.required(&secret.get("name"), "");
        }
    }
    for alias in at.get("hostAliases").items() {
        out.each(&alias.get("ip"), names::ip(alias.get("ip").text()));
        alias.get("hostnames").items().iter().for_each(|h| out.each(h, names::dns1123_subdomain(h.text())));
    }
    for gate in at.get("readinessGates").items() {
        out.each(&gate.get("conditionType"), names::qualified(gate.get("conditionType").text()));
    }
    out.one_of(&at.get("os.name"), &["linux", "windows"]);
    for (_, amount) in at.get("overhead").entries() {
        out.quantity(&amount);
    }
    placement::placement(at, out);
    security::pod(at, out);
}

fn containers(at: &At, volumes: &BTreeSet<&str>, out: &mut Out) {
    let (first, main) = (at.get("initContainers"), at.get("containers"));
    if !main.given() {
        out.required(&main, "");
    }
    let mut seen = BTreeSet::new();
    let mut host_ports: BTreeMap<(String, String, i64), ()> = BTreeMap::new();
    let roles = [(&first, container::Role::Init), (&main, container::Role::Main)];
    for (list, role) in roles {
        for c in list.items() {
            container::container(&c, role, volumes, out);
            let name = c.get("name");
            if name.given() && !seen.insert(name.text()) {
                out.duplicate(&name);
            }
            for port in c.get("ports").items() {
                check_host_port(at, &port, role, &mut host_ports, out);
            }
        }
    }
}

fn check_host_port(spec: &At, port: &At, role: container::Role, seen: &mut BTreeMap<(String, String, i64), ()>, out: &mut Out) {
    let host = port.get("hostPort");
    let Some(number) = host.int().filter(|n| *n != 0) else { return };
    if spec.v["hostNetwork"] == true && port.get("containerPort").int() != Some(number) {
        out.invalid(&port.get("containerPort"), "must match `hostPort` when `hostNetwork` is true");
    }
    // Init containers run one after the other.
    let key = (port.get("protocol").text().to_string(), port.get("hostIP").text().to_string(), number);
    if role == container::Role::Main && seen.insert(key.clone(), ()).is_some() {
        let text = Value::from(format!("{}/{}/{}", key.0, key.1, key.2));
        out.duplicate(&At { v: &text, path: host.path });
    }
}

fn dns(at: &At, out: &mut Out) {
    let policy = at.get("dnsPolicy");
    out.some_of(&policy, &DNS_POLICIES);
    let config = at.get("dnsConfig");
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if policy.text() == "None" && !servers.given() {
        let why = if config.is_set() {
            "must provide at least one DNS nameserver when `dnsPolicy` is None"
        } else {
            "must provide `dnsConfig` when `dnsPolicy` is None"
        };
        out.required(if config.is_set() { &servers } else { &config }, why);
    }
    if servers.items().len() > NAMESERVERS_MAX {
        out.invalid(&servers, &format!("must not have more than {NAMESERVERS_MAX} nameservers"));
    }
    servers.items().iter().for_each(|s| out.each(s, names::ip(s.text())));
    if searches.items().len() > SEARCHES_MAX {
        out.invalid(&searches, &format!("must not have more than {SEARCHES_MAX} search paths"));
    }
    for search in searches.items().iter().filter(|s| s.text() != ".") {
        out.each(search, names::dns1123_subdomain(search.text().trim_end_matches('.')));
    }
    for option in config.get("options").items() {
        if !option.get("name").given() {
            out.required(&option.get("name"), "must not be empty");
        }
    }
}

/// What an update of a pod may change: images, a shorter deadline, more tolerations, gates that open.
fn changes(at: &At, old: &Value, out: &mut Out) {
    for list in ["containers", "initContainers"] {
        let count = |spec: &Value| spec[list].as_array().map_or(0, Vec::len);
        if count(at.v) != count(old) {
            out.forbidden(&at.get(list), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(&at.get("activeDeadlineSeconds"), &old["activeDeadlineSeconds"], out);
    tolerations(&at.get("tolerations"), &old["tolerations"], out);
    // All that may change is put back; what still differs may not.
    let mut rest = at.v.clone();
    let mut restore = |field: &str| {
        if let Some(map) = rest.as_object_mut() {
            match old.get(field) {
                Some(before) => map.insert(field.to_string(), before.clone()),
                None => map.remove(field),
            };
        }
    };
    restore("activeDeadlineSeconds");
    restore("tolerations");
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) && at.v["terminationGracePeriodSeconds"] == 1 {
        restore("terminationGracePeriodSeconds");
    }
    let gates = |spec: &Value| spec["schedulingGates"].as_array().cloned().unwrap_or_default();
    if gates(at.v).iter().all(|g| gates(old).contains(g)) {
        restore("schedulingGates");
    } else {
        out.forbidden(&at.get("schedulingGates"), "only deletion is allowed, but found new scheduling gate");
        restore("schedulingGates");
    }
    for list in ["containers", "initContainers"] {
        for (i, before) in old[list].as_array().into_iter().flatten().enumerate() {
            if let Some(image) = rest[list][i].get_mut("image") {
                *image = before["image"].clone();
            }
        }
    }
    let mut changed = Vec::new();
    differences(&rest, old, &mut "spec".to_string(), &mut changed);
    if !changed.is_empty() {
        out.forbidden(at, &format!("{FIXED}\nchanged: {}", changed.join(", ")));
    }
}

fn deadline(new: &At, old: &Value, out: &mut Out) {
    match (new.int(), old.as_i64()) {
        (Some(new_value), Some(old_value)) if new_value > old_value => out.invalid(new, "must be less than or equal to previous value"),
        (None, Some(_)) => out.invalid(new, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

/// Tolerations may be added; of an existing one only the time may change.
fn tolerations(new: &At, old: &Value, out: &mut Out) {
    let untimed = |t: &Value| {
        let mut t = t.clone();
        if let Some(map) = t.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        t
    };
    let now: Vec<Value> = new.items().iter().map(|t| untimed(t.v)).collect();
    if old.as_array().into_iter().flatten().any(|t| !now.contains(&untimed(t))) {
        out.forbidden(new, "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// The paths at which two values differ, no deeper than a message can bear.
fn differences(a: &Value, b: &Value, path: &mut String, out: &mut Vec<String>) {
    if a == b || out.len() >= 8 {
        return;
    }
    let mut step = |a: &Value, b: &Value, name: String, out: &mut Vec<String>| {
        let length = path.len();
        path.push_str(&name);
        differences(a, b, path, out);
        path.truncate(length);
    };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            keys.into_iter().for_each(|k| step(&a[k.as_str()], &b[k.as_str()], format!(".{k}"), out));
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            (0..x.len()).for_each(|i| step(&x[i], &y[i], format!("[{i}]"), out));
        }
        _ => out.push(path.clone()),
    }
}
