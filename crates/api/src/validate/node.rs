//! Nodes and runtime classes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{At, Out, meta};
use crate::{Cause, names};

pub(super) const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub fn node(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    taints(&root.get("spec.taints"), &mut out);
    for list in ["capacity", "allocatable"] {
        for (_, amount) in root.get("status").get(list).entries() {
            out.quantity(&amount);
        }
    }
    let mut seen = BTreeSet::new();
    for address in root.get("status.addresses").items() {
        if !seen.insert(address.v.to_string()) {
            out.duplicate(&address);
        }
    }
    let Some(old) = old else { return out.0 };
    for (field, what) in [("podCIDR", "podCIDR"), ("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let before = &old["spec"][field];
        let at = root.get("spec").get(field);
        if !before.is_null() && before != "" && at.v != before {
            out.forbidden(&at, &format!("node updates may not change {what} except from \"\" to valid"));
        }
    }
    out.0
}

fn taints(at: &At, out: &mut Out) {
    let mut seen = BTreeSet::new();
    for taint in at.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        out.each(&key, names::qualified(key.text()));
        out.each(&value, names::label_value(value.text()));
        out.some_of(&effect, &TAINT_EFFECTS);
        if !seen.insert((key.text(), effect.text())) {
            out.duplicate(&taint);
        }
    }
}

pub fn runtime_class(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    out.each(&root.get("handler"), names::dns1123_label(root.get("handler").text()));
    for (_, amount) in root.get("overhead.podFixed").entries() {
        out.quantity(&amount);
    }
    out.labels(&root.get("scheduling.nodeSelector"));
    if let Some(old) = old {
        out.immutable(&root.get("handler"), old);
    }
    out.0
}
