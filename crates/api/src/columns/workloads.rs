//! Deployments, ReplicaSets, revisions, and the classes that pods name.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, NONE, age, containers, count, integer, list, name, or, selector, text, wide};
use crate::resource::Column;

pub const DEPLOYMENT: &[Column] =
    &[NAME, text("Ready"), text("Up-to-date"), text("Available"), AGE, wide("Containers"), wide("Images"), wide("Selector")];

pub fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(o),
        json!(format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"]))),
        json!(count(&status["updatedReplicas"])),
        json!(count(&status["availableReplicas"])),
        age(o, now),
        json!(names),
        json!(images),
        json!(selector(&spec["selector"])),
    ]
}

pub const REPLICA_SET: &[Column] =
    &[NAME, integer("Desired"), integer("Current"), integer("Ready"), AGE, wide("Containers"), wide("Images"), wide("Selector")];

pub fn replica_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(o),
        json!(count(&spec["replicas"])),
        json!(count(&status["replicas"])),
        json!(count(&status["readyReplicas"])),
        age(o, now),
        json!(names),
        json!(images),
        json!(selector(&spec["selector"])),
    ]
}

pub const CONTROLLER_REVISION: &[Column] = &[NAME, text("Controller"), integer("Revision"), AGE];

pub fn controller_revision(o: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(&o["metadata"]["ownerReferences"]).iter().find(|r| r["controller"] == true);
    let shown = owner.map_or(NONE.to_string(), |r| {
        let group = or(&r["apiVersion"], "").split_once('/').map(|(g, _)| format!(".{g}")).unwrap_or_default();
        format!("{}{group}/{}", or(&r["kind"], "").to_lowercase(), or(&r["name"], ""))
    });
    vec![name(o), json!(shown), json!(count(&o["revision"])), age(o, now)]
}

pub const PRIORITY_CLASS: &[Column] =
    &[NAME, integer("Value"), Column { name: "Global-Default", kind: "boolean", format: "", priority: 0 }, AGE, text("PreemptionPolicy")];

pub fn priority_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let policy = or(&o["preemptionPolicy"], "PreemptLowerPriority");
    vec![name(o), json!(count(&o["value"])), json!(o["globalDefault"] == true), age(o, now), json!(policy)]
}

pub const RUNTIME_CLASS: &[Column] = &[NAME, text("Handler"), AGE];

pub fn runtime_class(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), o["handler"].clone(), age(o, now)]
}
