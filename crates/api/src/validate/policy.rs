//! Limit ranges, quotas, priority classes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{At, IMMUTABLE, Out, meta};
use crate::quantity::Quantity;
use crate::{Cause, names};

/// Above are the classes of the system itself.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub fn limit_range(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let mut seen = BTreeSet::new();
    for limit in At::root(new).get("spec.limits").items() {
        let kind = limit.get("type");
        if !kind.given() {
            out.required(&kind, "");
        } else if !seen.insert(kind.text()) {
            out.duplicate(&kind);
        }
        if kind.text() == "Pod" {
            for field in ["default", "defaultRequest"].iter().filter(|f| limit.get(f).is_set()) {
                out.forbidden(&limit.get(field), "may not be specified when `type` is 'Pod'");
            }
        }
        for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (_, amount) in limit.get(field).entries() {
                out.quantity(&amount);
            }
        }
        ordered(&limit, &mut out);
    }
    out.0
}

/// min ≤ defaultRequest ≤ default ≤ max, of every resource.
fn ordered(limit: &At, out: &mut Out) {
    let amount = |field: &str, name: &str| Quantity::from_value(&limit.v[field][name]).ok();
    for (field, low, high, words) in [
        ("min", "min", "max", ["min value", "max value"]),
        ("default", "min", "default", ["min value", "default value"]),
        ("default", "default", "max", ["default value", "max value"]),
        ("defaultRequest", "min", "defaultRequest", ["min value", "default request value"]),
        ("defaultRequest", "defaultRequest", "max", ["default request value", "max value"]),
        ("defaultRequest", "defaultRequest", "default", ["default request value", "default limit value"]),
    ] {
        for (name, _) in limit.get(low).entries() {
            if let (Some(l), Some(h)) = (amount(low, name), amount(high, name))
                && l > h
            {
                let at = At { v: &limit.v[field][name], path: format!("{}.{field}[{name}]", limit.path) };
                out.invalid(&at, &format!("{} {l} is greater than {} {h}", words[0], words[1]));
            }
        }
    }
}

pub fn resource_quota(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    for list in ["spec.hard", "status.hard", "status.used"] {
        for (name, amount) in At::root(new).get(list).entries() {
            names::qualified(name).iter().for_each(|why| out.invalid_value(&amount, name, why));
            out.quantity(&amount);
        }
    }
    if let Some(old) = old {
        let scopes = At::root(new).get("spec.scopes");
        out.immutable(&scopes, old);
    }
    out.0
}

pub fn priority_class(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    let name = root.get("metadata.name");
    let system = matches!(name.text(), "system-cluster-critical" | "system-node-critical");
    if name.text().starts_with("system-") && !system {
        out.forbidden(&name, "priority class names with 'system-' prefix are reserved for system use only");
    } else if !system && root.get("value").int().is_some_and(|v| v > USER_PRIORITY_MAX) {
        out.forbidden(&root.get("value"), &format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"));
    }
    out.one_of(&root.get("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    if let Some(old) = old {
        // A value of zero is not written.
        if root.get("value").int().unwrap_or(0) != old["value"].as_i64().unwrap_or(0) {
            out.forbidden(&root.get("value"), "may not be changed in an update.");
        }
        if new["preemptionPolicy"] != old["preemptionPolicy"] {
            out.invalid(&root.get("preemptionPolicy"), IMMUTABLE);
        }
    }
    out.0
}
