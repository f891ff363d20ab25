//! Deployments, ReplicaSets, revisions.

use serde_json::Value;

use super::{At, IMMUTABLE, Out, meta, pod};
use crate::selector::Selector;
use crate::{Cause, names};

pub fn deployment(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let spec = At::root(new).get("spec");
    replicated(&spec, old, &mut out);
    strategy(&spec.get("strategy"), &mut out);
    out.non_negative(&spec.get("revisionHistoryLimit"));
    let deadline = spec.get("progressDeadlineSeconds");
    out.non_negative(&deadline);
    if deadline.int().is_some_and(|d| d <= spec.get("minReadySeconds").int().unwrap_or(0)) {
        out.invalid(&deadline, "must be greater than minReadySeconds");
    }
    out.0
}

pub fn replica_set(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    replicated(&At::root(new).get("spec"), old, &mut out);
    out.0
}

/// Replicas, selector and template: what a Deployment and a ReplicaSet share.
fn replicated(spec: &At, old: Option<&Value>, out: &mut Out) {
    out.non_negative(&spec.get("replicas"));
    out.non_negative(&spec.get("minReadySeconds"));
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    if selector.is_set() {
        out.label_selector(&selector);
    } else {
        out.required(&selector, "");
    }
    let parsed = Selector::from_value(selector.v);
    let labels = template.get("metadata.labels");
    match &parsed {
        Ok(s) if s.is_everything() => out.invalid(&selector, "empty selector is invalid for deployment"),
        Ok(s) if selector.is_set() && !s.matches(labels.v) => out.invalid(&labels, "`selector` does not match template `labels`"),
        _ => {}
    }
    out.labels(&labels);
    super::meta::annotations(&template.get("metadata.annotations"), out);
    let pods = template.get("spec");
    let restart = pods.get("restartPolicy");
    if restart.given() && restart.text() != "Always" {
        out.0.push(Cause::not_supported(&*restart.path, restart.v, &["Always"]));
    }
    if pods.get("activeDeadlineSeconds").is_set() {
        out.forbidden(&pods.get("activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
    pod::spec(&pods, true, out);
    if let Some(old) = old
        && selector.v != &old["spec"]["selector"]
    {
        out.invalid(&selector, IMMUTABLE);
    }
}

fn strategy(at: &At, out: &mut Out) {
    let rolling = at.get("rollingUpdate");
    match at.get("type").text() {
        "Recreate" if rolling.is_set() => out.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'"),
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(&unavailable, out);
            int_or_percent(&surge, out);
            if is_zero(unavailable.v) && is_zero(surge.v) {
                out.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            if percent(unavailable.v).is_some_and(|p| p > 100) {
                out.invalid(&unavailable, "must not be greater than 100%");
            }
        }
        _ => out.some_of(&at.get("type"), &["Recreate", "RollingUpdate"]),
    }
}

fn int_or_percent(at: &At, out: &mut Out) {
    if let Value::String(s) = at.v {
        out.each(at, names::percent(s));
    }
    out.non_negative(at);
}

fn percent(v: &Value) -> Option<i64> {
    v.as_str()?.strip_suffix('%')?.parse().ok()
}

fn is_zero(v: &Value) -> bool {
    v.as_i64() == Some(0) || percent(v) == Some(0)
}

pub fn controller_revision(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    out.non_negative(&root.get("revision"));
    match old {
        None if !root.get("data").is_set() => out.required(&root.get("data"), "data is mandatory"),
        None => {}
        Some(old) => out.immutable(&root.get("data"), old),
    }
    out.0
}
