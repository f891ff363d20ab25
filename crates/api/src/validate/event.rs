//! Events of both groups.

use serde_json::Value;

use super::{At, Out, meta};
use crate::limits::EVENT_NOTE_BYTES_MAX;
use crate::{Cause, names};

const REASON_BYTES_MAX: usize = 128;

pub fn core_event(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    about(&At::root(new), "involvedObject", &mut out);
    out.0
}

/// An event lies in the namespace of what it is about; events about cluster-scoped objects lie in `default`.
fn about(root: &At, field: &str, out: &mut Out) {
    let namespace = root.get("metadata.namespace");
    let subject = root.get(field).get("namespace");
    let good =
        if subject.given() { subject.text() == namespace.text() } else { matches!(namespace.text(), "" | "default" | "kube-system") };
    if !good {
        out.invalid_value(&subject, subject.text(), "does not match event.namespace");
    }
}

pub fn new_event(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    about(&root, "regarding", &mut out);
    if old.is_some() {
        return out.0;
    }
    if !root.get("eventTime").given() {
        out.required(&root.get("eventTime"), "");
    }
    out.named(&root.get("reportingController"), names::qualified);
    for field in ["reportingInstance", "action", "reason"] {
        let at = root.get(field);
        match at.text().len() {
            0 => out.required(&at, ""),
            n if n > REASON_BYTES_MAX => out.invalid_value(&at, "", &format!("can have at most {REASON_BYTES_MAX} characters")),
            _ => {}
        }
    }
    let kind = root.get("type");
    if !matches!(kind.text(), "Normal" | "Warning") {
        out.invalid_value(&kind, "", &format!("has invalid value: {}", kind.text()));
    }
    if root.get("note").text().len() > EVENT_NOTE_BYTES_MAX {
        out.invalid_value(&root.get("note"), "", &format!("can have at most {EVENT_NOTE_BYTES_MAX} characters"));
    }
    out.0
}
