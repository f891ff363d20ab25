//! `metadata`: what the server sets, what may not change, and when two states are the same.

use api::{Cause, Status, Value};
use serde_json::{Map, json};

use super::Cx;

/// Upstream's `maxNameLength` for generated names, and the letters that are added.
const BASE_LENGTH_MAX: usize = 58;
const SUFFIX_LENGTH: usize = 5;

pub fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub fn drop(object: &mut Value, fields: &[&str]) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in fields {
            meta.remove(*field);
        }
    }
}

/// Name and namespace of a new object, and what only the server says.
pub fn begin(cx: &Cx, object: &mut Value, generated: bool) -> Result<(), Status> {
    let given = text(object, "resourceVersion");
    if !given.is_empty() && given != "0" {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    if generated {
        let mut base = text(object, "generateName").to_string();
        while base.len() > BASE_LENGTH_MAX {
            base.pop();
        }
        object["metadata"]["name"] = format!("{base}{}", cx.server.config.ids.suffix(SUFFIX_LENGTH)).into();
    }
    if text(object, "name").is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Status::invalid(cx.row.group, cx.row.kind, "", vec![cause]));
    }
    drop(object, &["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]);
    let meta = &mut object["metadata"];
    meta["uid"] = cx.server.config.ids.uid().into();
    meta["creationTimestamp"] = cx.now().into();
    if cx.row.counts_generation {
        meta["generation"] = 1.into();
    }
    Ok(())
}

/// The namespace of the body and of the URL must agree; the URL's counts.
pub fn place(cx: &Cx, object: &mut Value) -> Result<(), Status> {
    let (given, url) = (text(object, "namespace"), cx.namespace());
    if !cx.row.namespaced() {
        drop(object, &["namespace"]);
        return Ok(());
    }
    if !given.is_empty() && given != url {
        let message = format!("the namespace of the provided object does not match the namespace sent on the request ({given} and {url})");
        return Err(Status::bad_request(message));
    }
    object["metadata"]["namespace"] = url.into();
    Ok(())
}

/// What an update cannot change is as it was.
pub fn carry_over(object: &mut Value, old: &Value) {
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        let before = &old["metadata"][field];
        if before.is_null() {
            drop(object, &[field]);
        } else {
            object["metadata"][field] = before.clone();
        }
    }
    drop(object, &["selfLink"]);
}

/// An object that is being deleted gets no new finalizers.
pub fn check_finalizers(cx: &Cx, new: &Value, old: &Value) -> Result<(), Status> {
    if old["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let list = |v: &Value| v["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let before = list(old);
    let added: Vec<String> =
        list(new).iter().filter(|f| !before.contains(f)).filter_map(|f| f.as_str()).map(|f| format!("{f:?}")).collect();
    if added.is_empty() {
        return Ok(());
    }
    let detail =
        format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", added.join(", "));
    let cause = Cause::forbidden("metadata.finalizers", &detail);
    Err(Status::invalid(cx.row.group, cx.row.kind, text(new, "name"), vec![cause]))
}

/// The generation counts changes of what is wanted: everything but metadata and status.
pub fn count_generation(cx: &Cx, new: &mut Value, old: &Value) {
    if !cx.row.counts_generation {
        return;
    }
    let before = old["metadata"]["generation"].as_i64().unwrap_or(1);
    let changed = !same_but(new, old, &["apiVersion", "kind", "metadata", "status"]);
    new["metadata"]["generation"] = (before + i64::from(changed)).into();
}

/// Whether two objects have the same fields and values, some fields aside.
fn same_but(a: &Value, b: &Value, aside: &[&str]) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let fields = |map: &'_ Map<String, Value>| map.keys().filter(|k| !aside.contains(&k.as_str())).count();
    fields(a) == fields(b) && a.iter().filter(|(k, _)| !aside.contains(&k.as_str())).all(|(k, v)| b.get(k) == Some(v))
}

/// Whether a write would change nothing but revision and the times in managedFields.
pub fn is_same(new: &Value, old: &Value) -> bool {
    fn managed(object: &Value) -> &[Value] {
        object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
    same_but(new, old, &["metadata"]) && same_but(&new["metadata"], &old["metadata"], &["resourceVersion", "managedFields"]) && {
        let (new, old) = (managed(new), managed(old));
        new.len() == old.len() && new.iter().zip(old).all(|(n, o)| same_but(n, o, &["time"]))
    }
}

/// Whether nothing holds an object any more that is to go: no finalizer, no grace period left.
pub fn is_released(object: &Value) -> bool {
    let meta = &object["metadata"];
    let empty = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
    let namespace_held = object["kind"] == "Namespace" && object["apiVersion"] == "v1" && !empty(&object["spec"]["finalizers"]);
    !meta["deletionTimestamp"].is_null()
        && empty(&meta["finalizers"])
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !namespace_held
}

/// The `details` of a deletion's Success.
pub fn details(cx: &Cx, object: &Value) -> Value {
    let mut details = json!({ "name": text(object, "name"), "kind": cx.row.plural, "uid": text(object, "uid") });
    if !cx.row.group.is_empty() {
        details["group"] = cx.row.group.into();
    }
    details
}
