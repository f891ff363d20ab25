//! Where a pod may run: node selectors, affinity, tolerations, spreading, gates.

use std::collections::BTreeSet;

use super::super::node::TAINT_EFFECTS;
use super::super::{At, Out};
use crate::names;

pub(super) fn placement(spec: &At, out: &mut Out) {
    out.labels(&spec.get("nodeSelector"));
    spec.get("tolerations").items().iter().for_each(|t| toleration(t, out));
    affinity(&spec.get("affinity"), out);
    spec.get("topologySpreadConstraints").items().iter().for_each(|c| spread(c, out));
    let mut seen = BTreeSet::new();
    for gate in spec.get("schedulingGates").items() {
        out.each(&gate.get("name"), names::qualified(gate.get("name").text()));
        if !seen.insert(gate.get("name").text()) {
            out.duplicate(&gate.get("name"));
        }
    }
}

fn toleration(at: &At, out: &mut Out) {
    let [key, operator, value, effect] = ["key", "operator", "value", "effect"].map(|f| at.get(f));
    out.matches(&key, names::qualified);
    if !key.given() && operator.text() != "Exists" {
        out.invalid_value(
            &operator,
            operator.text(),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if at.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
        out.invalid_value(&effect, effect.text(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
    }
    match operator.text() {
        "" | "Equal" => {
            let why = names::label_value(value.text());
            if !why.is_empty() {
                out.invalid(&operator, &why.join(";"));
            }
        }
        "Exists" if value.given() => out.invalid(&operator, "value must be empty when `operator` is 'Exists'"),
        "Exists" => {}
        _ => out.one_of(&operator, &["Equal", "Exists"]),
    }
    out.one_of(&effect, &TAINT_EFFECTS);
}

fn affinity(at: &At, out: &mut Out) {
    let node = at.get("nodeAffinity");
    let required = node.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        let terms = required.get("nodeSelectorTerms");
        if !terms.given() {
            out.required(&terms, "must have at least one node selector term");
        }
        terms.items().iter().for_each(|t| node_term(t, out));
    }
    for preferred in node.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preferred, out);
        node_term(&preferred.get("preference"), out);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.get(kind);
        pods.get("requiredDuringSchedulingIgnoredDuringExecution").items().iter().for_each(|t| pod_term(t, out));
        for preferred in pods.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(&preferred, out);
            pod_term(&preferred.get("podAffinityTerm"), out);
        }
    }
}

fn weight(at: &At, out: &mut Out) {
    let weight = at.get("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        out.invalid(&weight, "must be in the range 1-100");
    }
}

fn node_term(at: &At, out: &mut Out) {
    for e in at.get("matchExpressions").items() {
        let values = e.get("values");
        match e.get("operator").text() {
            "In" | "NotIn" if !values.given() => out.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
            "Exists" | "DoesNotExist" if values.given() => {
                out.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Gt" | "Lt" if values.items().len() != 1 => {
                out.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => out.invalid(&e.get("operator"), "not a valid selector operator"),
        }
        out.each(&e.get("key"), names::qualified(e.get("key").text()));
    }
    for e in at.get("matchFields").items() {
        out.some_of(&e.get("key"), &["metadata.name"]);
        if !matches!(e.get("operator").text(), "In" | "NotIn") {
            out.invalid(&e.get("operator"), "not a valid selector operator");
        }
    }
}

fn pod_term(at: &At, out: &mut Out) {
    out.label_selector(&at.get("labelSelector"));
    out.label_selector(&at.get("namespaceSelector"));
    at.get("namespaces").items().iter().for_each(|n| out.each(n, names::dns1123_label(n.text())));
    let key = at.get("topologyKey");
    if key.given() {
        out.each(&key, names::qualified(key.text()));
    } else {
        out.required(&key, "can not be empty");
    }
}

fn spread(at: &At, out: &mut Out) {
    let (skew, key) = (at.get("maxSkew"), at.get("topologyKey"));
    if skew.int().unwrap_or(0) <= 0 {
        out.invalid(&skew, "must be greater than zero");
    }
    if key.given() {
        out.each(&key, names::qualified(key.text()));
    } else {
        out.required(&key, "can not be empty");
    }
    out.some_of(&at.get("whenUnsatisfiable"), &["DoNotSchedule", "ScheduleAnyway"]);
    out.positive(&at.get("minDomains"));
    out.label_selector(&at.get("labelSelector"));
    for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        out.one_of(&at.get(policy), &["Honor", "Ignore"]);
    }
}
