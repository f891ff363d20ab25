//! Server-side apply: a configuration is merged into an object by the rules of its type, and owners are kept.
//!
//! Source: "Server-Side Apply" in Kubernetes' documentation and `sigs.k8s.io/structured-merge-diff`. Pure: the caller reads,
//! defaults, validates and stores.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fieldset::{FieldSet, Step, show};
use crate::managed::{self, Id, Managers, Operation, Owned, Writer};
use crate::status::{Cause, Details, Reason, Status};
use crate::typed;

/// What `kubectl apply` without `--server-side` remembers its configuration in.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object that results when `writer` applies `config` to `live` (`None`: there is no such object), with its
/// `managedFields`. Not yet defaulted.
///
/// Without `force`, fields that others own and that `config` changes are a conflict (409, one cause a field). What this
/// writer applied before, does not apply now and nobody else owns is removed.
pub fn apply(writer: &Writer, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    check(writer, config)?;
    let mut config = config.clone();
    for step in writer.unreachable().children.keys() {
        if let (Step::Field(field), Some(map)) = (step, config.as_object_mut()) {
            map.remove(field);
        }
    }
    let managers = match live {
        Some(live) => known(writer, live)?,
        None => Managers::default(),
    };
    let bare = bare(live, &config);
    let (mut object, mut managers) = match merge(writer, &bare, &config, managers.clone(), force) {
        Ok(done) => done,
        Err(conflicts) => {
            let left = without_client_side(writer, &bare, conflicts);
            if !left.is_empty() {
                return Err(conflict(&left));
            }
            merge(writer, &bare, &config, managers, true).map_err(|c| conflict(&c))?
        }
    };
    stamp(writer, live, &object, &mut managers);
    if writer.manager == "kubectl" {
        sync_last_applied(&mut object, &config);
    }
    managed::put(&mut object, &managers);
    Ok(object)
}

fn check(writer: &Writer, config: &Value) -> Result<(), Status> {
    let version = config["apiVersion"].as_str().unwrap_or_default();
    if version != writer.api_version {
        let expected = writer.api_version;
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {expected}"
        )));
    }
    if !config["metadata"]["managedFields"].is_null() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let meta = |name: &str| config["metadata"][name].as_str().unwrap_or_default();
    typed::check(writer.schema, config).map_err(|why| {
        let (ns, name, kind) = (meta("namespace"), meta("name"), config["kind"].as_str().unwrap_or_default());
        Status::bad_request(format!("failed to create typed patch object ({ns}/{name}; {version}, Kind={kind}): {why}"))
    })
}

/// The owners of a stored object. One that was never tracked belongs to `before-first-apply`.
fn known(writer: &Writer, live: &Value) -> Result<Managers, Status> {
    let entries = &live["metadata"]["managedFields"];
    let mut managers = Managers::decode(entries).ok_or_else(|| Status::internal("failed to decode managed fields"))?;
    if managers.0.is_empty() {
        let first = Writer { manager: "before-first-apply", ..*writer };
        managed::note(&first, None, live, &mut managers);
    }
    Ok(managers)
}

fn bare(live: Option<&Value>, config: &Value) -> Value {
    match live {
        Some(live) => {
            let mut live = live.clone();
            managed::take(&mut live);
            live
        }
        None => json!({"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {}}),
    }
}

type Conflicts = BTreeMap<Id, FieldSet>;

fn merge(writer: &Writer, live: &Value, config: &Value, managers: Managers, force: bool) -> Result<(Value, Managers), Conflicts> {
    let mut managers = managers;
    let id = writer.id(Operation::Apply);
    let mut mine = typed::fields(writer.schema, config);
    mine.subtract_below(&writer.unreachable());
    let merged = typed::merge(writer.schema, live, config);
    let previous = managers.0.insert(id.clone(), Owned { fields: mine, api_version: writer.api_version.into(), time: None });
    let time = previous.as_ref().and_then(|p| p.time.clone());
    let object = match previous {
        Some(previous) => prune(writer, merged, &managers, &previous.fields),
        None => merged,
    };
    let change = typed::compare(writer.schema, live, &object);
    let mut touched = change.modified.clone();
    touched.union(&change.added);
    let others = managers.0.iter().filter(|(other, _)| **other != id);
    let conflicts: Conflicts =
        others.map(|(other, owned)| (other.clone(), owned.fields.intersection(&touched))).filter(|(_, set)| !set.is_empty()).collect();
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    managers.yield_to(Some(&id), &change);
    if let Some(owned) = managers.0.get_mut(&id) {
        owned.fields.subtract(&managed::unowned());
        owned.time = time;
        if owned.fields.is_empty() {
            managers.0.remove(&id);
        }
    }
    Ok((object, managers))
}

/// Takes out what this applier had applied before and nobody owns now.
fn prune(writer: &Writer, merged: Value, managers: &Managers, last: &FieldSet) -> Value {
    if last.is_empty() {
        return merged;
    }
    let schema = writer.schema;
    let last = last.with_parents();
    let mut owned = FieldSet::new();
    managers.0.values().for_each(|o| owned.union(&o.fields));
    let all = typed::fields(schema, &merged).with_parents();
    // Everything that was applied goes; then what somebody owns comes back, and what was not applied last time.
    let mut keep = typed::fields(schema, &typed::remove(schema, &merged, &last)).with_parents();
    keep.union(&owned.with_parents());
    let mut gone = all.clone();
    gone.subtract(&keep);
    let kept = typed::fields(schema, &typed::remove(schema, &merged, &gone)).with_parents();
    let mut gone = all;
    gone.subtract(&kept);
    typed::remove(schema, &merged, &gone.intersection(&last))
}

/// Writes the time where something was changed: a repeated apply leaves no trace.
fn stamp(writer: &Writer, live: Option<&Value>, object: &Value, managers: &mut Managers) {
    let id = writer.id(Operation::Apply);
    let before = live.and_then(|l| Managers::decode(&l["metadata"]["managedFields"])).and_then(|m| m.0.get(&id).cloned());
    let same_object = live.is_some_and(|l| {
        let mut l = l.clone();
        managed::take(&mut l);
        l == *object
    });
    if let Some(mine) = managers.0.get_mut(&id)
        && !(same_object && before.is_some_and(|b| b.fields == mine.fields && b.time.is_some()))
    {
        mine.time = Some(base::rfc3339(writer.now));
    }
}

/// `kubectl` moves from client-side to server-side apply: what its last configuration has and the object still has is its own.
fn without_client_side(writer: &Writer, live: &Value, conflicts: Conflicts) -> Conflicts {
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str().and_then(|t| serde_json::from_str::<Value>(t).ok());
    let Some(last) = last.filter(|l| writer.manager == "kubectl" && l["apiVersion"] == writer.api_version) else { return conflicts };
    let mut allowed = typed::fields(writer.schema, &last);
    let change = typed::compare(writer.schema, &last, live);
    for set in [&change.modified, &change.added, &change.removed] {
        allowed.subtract(set);
    }
    allowed.union(&FieldSet::of_fields(&[&["metadata", "annotations", LAST_APPLIED]]));
    let left = conflicts.into_iter().map(|(id, mut set)| {
        set.subtract(&allowed);
        (id, set)
    });
    left.filter(|(_, set)| !set.is_empty()).collect()
}

/// Keeps client-side apply's memory true, for those who go back to it.
fn sync_last_applied(object: &mut Value, config: &Value) {
    let Some(held) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut).and_then(|a| a.get_mut(LAST_APPLIED))
    else {
        return;
    };
    if held.as_str().is_some_and(|h| !h.is_empty()) {
        let mut config = config.clone();
        if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
            if annotations.is_empty()
                && let Some(meta) = config["metadata"].as_object_mut()
            {
                meta.remove("annotations");
            }
        }
        *held = Value::String(format!("{config}\n"));
    }
}

fn conflict(conflicts: &Conflicts) -> Status {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (id, set) in conflicts {
        lines.push(format!("conflicts with {}:", id.shown()));
        for path in set.paths() {
            let field = show(&path);
            lines.push(format!("- {field}"));
            causes.push(Cause { reason: "FieldManagerConflict".into(), message: format!("conflict with {}", id.shown()), field });
        }
    }
    let message = match &causes[..] {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        all => format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n")),
    };
    Status { details: Some(Details { causes, ..Details::default() }), ..Status::new(Reason::Conflict, message) }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
