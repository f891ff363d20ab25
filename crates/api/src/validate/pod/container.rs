//! One container: image, ports, environment, mounts, resources.

use std::collections::BTreeSet;

use super::super::endpoints::PROTOCOLS;
use super::super::{At, Out};
use super::{handler, security};
use crate::names;
use crate::quantity::Quantity;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Main,
    Init,
    Ephemeral,
}

const FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

pub(super) fn container(at: &At, role: Role, volumes: &BTreeSet<&str>, out: &mut Out) {
    out.named(&at.get("name"), names::dns1123_label);
    let image = at.get("image");
    if !image.given() {
        out.required(&image, "");
    } else if image.text().trim() != image.text() {
        out.invalid(&image, "must not have leading or trailing whitespace");
    }
    out.some_of(&at.get("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    out.some_of(&at.get("terminationMessagePolicy"), &["FallbackToLogsOnError", "File"]);
    ports(&at.get("ports"), out);
    at.get("env").items().iter().for_each(|e| env(e, out));
    at.get("envFrom").items().iter().for_each(|e| env_from(e, out));
    mounts(&at.get("volumeMounts"), volumes, out);
    resources(&at.get("resources"), out);
    security::container(&at.get("securityContext"), out);
    restart(at, role, out);
    handler::probes_and_hooks(at, out);
}

/// Only sidecars (init containers that restart always) are probed and hooked among the init containers.
fn restart(at: &At, role: Role, out: &mut Out) {
    let policy = at.get("restartPolicy");
    match role {
        Role::Main if policy.given() => out.forbidden(&policy, "may not be set for non-init containers"),
        Role::Ephemeral if policy.given() => out.forbidden(&policy, "cannot be set for an Ephemeral Container"),
        Role::Init => {
            if policy.given() && policy.text() != "Always" {
                out.one_of(&policy, &["Always"]);
            }
            if policy.text() != "Always" {
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"].iter().filter(|f| at.get(f).is_set()) {
                    out.forbidden(&at.get(field), "may not be set for init containers without restartPolicy=Always");
                }
            }
        }
        _ => {}
    }
}

fn ports(at: &At, out: &mut Out) {
    let mut seen = BTreeSet::new();
    for port in at.items() {
        let (name, number, host) = (port.get("name"), port.get("containerPort"), port.get("hostPort"));
        if name.given() {
            let why = names::port_name(name.text());
            if why.is_empty() && !seen.insert(name.text()) {
                out.duplicate(&name);
            }
            out.each(&name, why);
        }
        match number.int() {
            None | Some(0) => out.required(&number, ""),
            Some(n) => out.each(&number, names::port_number(n)),
        }
        if let Some(n) = host.int().filter(|n| *n != 0) {
            out.each(&host, names::port_number(n));
        }
        out.some_of(&port.get("protocol"), &PROTOCOLS);
        out.matches(&port.get("hostIP"), names::ip);
    }
}

fn env(at: &At, out: &mut Out) {
    let (name, value, from) = (at.get("name"), at.get("value"), at.get("valueFrom"));
    out.named(&name, names::env_name);
    if !from.is_set() {
        return;
    }
    let given = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"].into_iter().filter(|f| from.get(f).is_set());
    match given.count() {
        0 => out.invalid_value(&from, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"),
        _ if value.given() => out.invalid_value(&from, "", "may not be specified when `value` is not empty"),
        1 => {}
        _ => out.invalid_value(&from, "", "may not have more than one field specified at a time"),
    }
    if from.get("fieldRef").is_set() {
        field_ref(&from.get("fieldRef"), &FIELD_PATHS, out);
    }
    if from.get("resourceFieldRef").is_set() {
        resource_field_ref(&from.get("resourceFieldRef"), out);
    }
    for field in ["configMapKeyRef", "secretKeyRef"].iter().filter(|f| from.get(f).is_set()) {
        let reference = from.get(field);
        if !reference.get("name").given() {
            out.required(&reference.get("name"), "");
        }
        out.named(&reference.get("key"), names::config_key);
    }
}

/// `fieldRef`: a field of the pod, or one label or annotation by its key.
pub(super) fn field_ref(at: &At, allowed: &[&str], out: &mut Out) {
    let path = at.get("fieldPath");
    if !at.get("apiVersion").given() {
        out.required(&at.get("apiVersion"), "");
    } else if !path.given() {
        out.required(&path, "");
    } else if let Some((map, key)) = path.text().strip_suffix("']").and_then(|p| p.split_once("['")) {
        match map {
            "metadata.annotations" => out.each(&path, names::qualified(&key.to_lowercase())),
            "metadata.labels" => out.each(&path, names::qualified(key)),
            _ => out.invalid(&path, "does not support subscript"),
        }
    } else {
        out.one_of(&path, allowed);
    }
}

pub(super) fn resource_field_ref(at: &At, out: &mut Out) {
    let resource = at.get("resource");
    if !resource.given() {
        out.required(&resource, "");
    } else if !["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.text().starts_with(p)) {
        out.one_of(&resource, &RESOURCE_FIELDS);
    }
    if at.get("divisor").is_set() {
        out.quantity(&at.get("divisor"));
    }
}

fn env_from(at: &At, out: &mut Out) {
    out.matches(&at.get("prefix"), names::env_name);
    let sources = ["configMapRef", "secretRef"].map(|f| at.get(f));
    match sources.iter().filter(|s| s.is_set()).count() {
        0 => out.invalid_value(at, "", "must specify one of: `configMapRef` or `secretRef`"),
        1 => {}
        _ => out.invalid_value(at, "", "may not have more than one field specified at a time"),
    }
    for source in sources.iter().filter(|s| s.is_set()) {
        out.named(&source.get("name"), names::dns1123_subdomain);
    }
}

fn mounts(at: &At, volumes: &BTreeSet<&str>, out: &mut Out) {
    let mut seen = BTreeSet::new();
    for mount in at.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if !name.given() {
            out.required(&name, "");
        } else if !volumes.contains(name.text()) {
            out.not_found(&name);
        }
        if !path.given() {
            out.required(&path, "");
        } else if !seen.insert(path.text()) {
            out.invalid(&path, "must be unique");
        }
        let (sub, expr) = (mount.get("subPath"), mount.get("subPathExpr"));
        for inner in [&sub, &expr] {
            if inner.given() {
                inner_path(inner, out);
            }
        }
        if sub.given() && expr.given() {
            out.invalid(&expr, "subPathExpr and subPath are mutually exclusive");
        }
        out.one_of(&mount.get("mountPropagation"), &["Bidirectional", "HostToContainer", "None"]);
        out.one_of(&mount.get("recursiveReadOnly"), &["Disabled", "Enabled", "IfPossible"]);
    }
}

/// A path within a volume: relative, and not out of it.
pub(super) fn inner_path(at: &At, out: &mut Out) {
    if at.text().starts_with('/') {
        out.invalid(at, "must be a relative path");
    }
    if at.text().split('/').any(|part| part == "..") {
        out.invalid(at, "must not contain '..'");
    }
}

/// A standard resource, or one that a domain stands before.
fn resource_name(name: &str) -> Option<&'static str> {
    if name.contains('/') {
        return (!names::qualified(name).is_empty()).then_some("must be a standard resource type or fully qualified");
    }
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    (!standard).then_some("must be a standard resource for containers")
}

fn resources(at: &At, out: &mut Out) {
    let (limits, requests) = (at.get("limits"), at.get("requests"));
    for list in [&limits, &requests] {
        for (name, amount) in list.entries() {
            if let Some(why) = resource_name(name) {
                out.invalid_value(&amount, name, why);
            }
            let parsed = out.quantity(&amount);
            if name.contains('/') && parsed.is_some_and(|q| !q.is_whole()) {
                out.invalid(&amount, "must be an integer");
            }
        }
    }
    for (name, request) in requests.entries() {
        let (Ok(asked), Ok(limit)) = (Quantity::from_value(request.v), Quantity::from_value(&limits.v[name])) else { continue };
        let whole = name.contains('/') || name.starts_with("hugepages-");
        if whole && asked != limit {
            out.invalid_value(&requests, asked.to_string(), &format!("must be equal to {name} limit of {limit}"));
        } else if asked > limit {
            out.invalid_value(&requests, asked.to_string(), &format!("must be less than or equal to {name} limit of {limit}"));
        }
    }
}
