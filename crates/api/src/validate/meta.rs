//! `metadata` of every kind.

use serde_json::Value;

use super::{At, Out};
use crate::limits::ANNOTATIONS_BYTES_MAX;
use crate::names;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a name may be; the reasons why one is not.
pub(crate) type NameRule = fn(&str) -> Vec<String>;

/// Names are checked when an object is new: they cannot change later.
pub(crate) fn meta(new: &Value, old: Option<&Value>, rule: NameRule, out: &mut Out) {
    let meta = At::root(new).get("metadata");
    if old.is_none() {
        let generated = meta.get("generateName");
        if generated.given() {
            // What is appended to it ends the name well.
            let mut whole = generated.text().trim_end_matches('-').to_string();
            whole.push('a');
            out.each(&generated, rule(&whole));
        }
        let name = meta.get("name");
        if name.given() {
            out.each(&name, rule(name.text()));
        } else {
            out.required(&name, "name or generateName is required");
        }
        finalizers(&meta.get("finalizers"), out);
    }
    out.matches(&meta.get("namespace"), names::dns1123_label);
    out.labels(&meta.get("labels"));
    annotations(&meta.get("annotations"), out);
    owners(&meta.get("ownerReferences"), out);
    managed_fields(&meta.get("managedFields"), out);
}

pub(super) fn annotations(at: &At, out: &mut Out) {
    let mut size = 0;
    for (key, value) in at.entries() {
        size += key.len() + value.text().len();
        names::qualified(&key.to_lowercase()).iter().for_each(|why| out.invalid_value(at, key, why));
    }
    if size > ANNOTATIONS_BYTES_MAX {
        out.too_long(at, ANNOTATIONS_BYTES_MAX);
    }
}

fn finalizers(at: &At, out: &mut Out) {
    for finalizer in at.items() {
        names::qualified(finalizer.text()).iter().for_each(|why| out.invalid_value(at, finalizer.text(), why));
    }
    let has = |name: &str| at.items().iter().any(|f| f.text() == name);
    if has(ORPHAN) && has(FOREGROUND) {
        out.invalid(at, &format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set"));
    }
}

fn owners(at: &At, out: &mut Out) {
    let mut controller: Option<String> = None;
    for owner in at.items() {
        for (field, what) in [("apiVersion", "version"), ("kind", "kind"), ("name", "name"), ("uid", "uid")] {
            if !owner.get(field).given() {
                let field = At { v: owner.get(field).v, path: format!("{}.{field}", at.path) };
                out.invalid_value(&field, "", &format!("{what} must not be empty"));
            }
        }
        if owner.v["apiVersion"] == "v1" && owner.v["kind"] == "Event" {
            out.invalid(at, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.v["controller"] != true {
            continue;
        }
        let name = format!("{}/{}", owner.get("kind").text(), owner.get("name").text());
        match &controller {
            Some(first) => out.invalid(
                at,
                &format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"),
            ),
            None => controller = Some(name),
        }
    }
}

fn managed_fields(at: &At, out: &mut Out) {
    for entry in at.items() {
        if !matches!(entry.get("operation").text(), "Apply" | "Update") {
            out.invalid(&entry.get("operation"), "must be `Apply` or `Update`");
        }
        if entry.get("fieldsType").given() && entry.get("fieldsType").text() != "FieldsV1" {
            out.invalid(&entry.get("fieldsType"), "must be `FieldsV1`");
        }
    }
}
