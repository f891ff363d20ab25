//! Owners over whole stories: create, apply, change, conflict, force, give up.

use base::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::managed::update;
use crate::schema;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_760_000_000 + second).unwrap()
}

fn writer(manager: &str, second: i64) -> Writer<'_> {
    Writer { schema: schema::for_api_version("apps/v1", "Deployment"), api_version: "apps/v1", manager, subresource: "", now: at(second) }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web"}}, "spec": spec})
}

fn spec(replicas: i64, image: &str) -> Value {
    json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": image, "ports": [{"containerPort": 80}]}]}}})
}

/// As a server would finish it: an id and what defaulting adds.
fn stored(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!("u");
    if let Some(c) = object.pointer_mut("/spec/template/spec/containers/0") {
        c["imagePullPolicy"] = json!("IfNotPresent");
    }
    object
}

fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |e: &Value| {
        let fields = FieldSet::from_fields_v1(&e["fieldsV1"]).unwrap();
        let sub = e["subresource"].as_str().map(|s| format!("/{s}")).unwrap_or_default();
        format!("{} {}{sub} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap(), fields.paths().len())
    };
    entries.iter().map(one).collect()
}

fn owns(object: &Value, manager: &str, path: &str) -> bool {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .filter(|e| e["manager"] == manager)
        .any(|e| FieldSet::from_fields_v1(&e["fieldsV1"]).unwrap().paths().iter().any(|p| show(p) == path))
}

#[test]
fn a_created_object_is_owned_as_upstream_notes_it() {
    let mut after = deployment(spec(3, "a:1"));
    after["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}});
    update(&writer("kubectl-create", 0), None, &mut after);
    let entry = &after["metadata"]["managedFields"][0];
    assert_eq!(entry["time"], "2025-10-09T08:53:20Z");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["operation"], "Update");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
}

#[test]
fn an_applied_object_is_owned_by_what_was_given() {
    let after = apply(&writer("me", 0), None, &deployment(spec(3, "a:1")), false).unwrap();
    let entry = &after["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["fieldsV1"]["f:metadata"], json!({"f:labels": {"f:app": {}}}));
    assert_eq!(
        entry["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"web\"}"]["f:ports"],
        json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}})
    );
    assert_eq!(after["spec"], deployment(spec(3, "a:1"))["spec"]);
}

#[test]
fn applying_again_changes_nothing() {
    let config = deployment(spec(3, "a:1"));
    let first = stored(apply(&writer("me", 0), None, &config, false).unwrap());
    let second = apply(&writer("me", 60), Some(&first), &config, false).unwrap();
    assert_eq!(second, first);
}

#[test]
fn what_others_own_is_a_conflict_until_forced() {
    let mut live = deployment(spec(3, "a:1"));
    update(&writer("kubectl-client-side-apply", 0), None, &mut live);
    let live = stored(live);
    let error = apply(&writer("me", 1), Some(&live), &deployment(spec(5, "a:1")), false).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas");
    assert_eq!(error.code, 409);
    let causes = error.details.unwrap().causes;
    assert_eq!(causes[0].reason, "FieldManagerConflict");
    assert_eq!(causes[0].field, ".spec.replicas");
    assert_eq!(causes[0].message, "conflict with \"kubectl-client-side-apply\" using apps/v1");

    let error = apply(&writer("me", 1), Some(&live), &deployment(spec(5, "a:2")), false).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"web\"].image"
    );

    let forced = apply(&writer("me", 1), Some(&live), &deployment(spec(5, "a:1")), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert!(owns(&forced, "me", ".spec.replicas"));
    assert!(!owns(&forced, "kubectl-client-side-apply", ".spec.replicas"));
    assert!(owns(&forced, "kubectl-client-side-apply", ".spec.selector"), "what is the same is shared");
}

#[test]
fn what_is_given_up_and_nobody_owns_is_removed() {
    let mut config = deployment(spec(3, "a:1"));
    config["metadata"]["annotations"] = json!({"a": "1"});
    config["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]);
    config["spec"]["template"]["spec"]["securityContext"] = json!({"runAsUser": 5});
    let live = stored(apply(&writer("me", 0), None, &config, false).unwrap());
    let next = apply(&writer("me", 1), Some(&live), &deployment(spec(3, "a:1")), false).unwrap();
    assert!(next["metadata"].get("annotations").is_none());
    assert!(next["spec"]["template"]["spec"].get("securityContext").is_none());
    let container = &next["spec"]["template"]["spec"]["containers"][0];
    assert!(container.get("env").is_none(), "{container}");
    assert_eq!(container["imagePullPolicy"], "IfNotPresent", "a default is nobody's and stays");
    // One of a list goes, the other stays.
    config["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "B", "value": "2"}]);
    let fewer = apply(&writer("me", 2), Some(&live), &config, false).unwrap();
    assert_eq!(fewer["spec"]["template"]["spec"]["containers"][0]["env"], json!([{"name": "B", "value": "2"}]));
}

#[test]
fn what_is_given_up_stays_where_another_owns_it() {
    let config = deployment(spec(3, "a:1"));
    let live = stored(apply(&writer("me", 0), None, &config, false).unwrap());
    let both = stored(apply(&writer("you", 1), Some(&live), &config, false).unwrap());
    assert_eq!(owners(&both).len(), 2);
    let mut less = config.clone();
    less["spec"].as_object_mut().unwrap().remove("replicas");
    let after = apply(&writer("me", 2), Some(&both), &less, false).unwrap();
    assert_eq!(after["spec"]["replicas"], 3);
    assert!(!owns(&after, "me", ".spec.replicas") && owns(&after, "you", ".spec.replicas"));
    let gone = apply(&writer("you", 3), Some(&stored(after)), &less, false).unwrap();
    assert!(gone["spec"].get("replicas").is_none());
}

#[test]
fn updates_take_what_they_change() {
    let live = stored(apply(&writer("me", 0), None, &deployment(spec(3, "a:1")), false).unwrap());
    let mut after = live.clone();
    after["spec"]["replicas"] = json!(5);
    update(&writer("kubectl-scale", 1), Some(&live), &mut after);
    assert_eq!(owners(&after), ["me Apply 8", "kubectl-scale Update 1"]);
    assert!(!owns(&after, "me", ".spec.replicas"));
    let error = apply(&writer("me", 2), Some(&after), &deployment(spec(3, "a:1")), false).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas");
    // Who agrees takes part.
    let agreed = apply(&writer("me", 2), Some(&after), &deployment(spec(5, "a:1")), false).unwrap();
    assert!(owns(&agreed, "me", ".spec.replicas") && owns(&agreed, "kubectl-scale", ".spec.replicas"));
    // An update that changes nothing leaves no trace.
    let mut same = after.clone();
    update(&writer("other", 3), Some(&after), &mut same);
    assert_eq!(same, after);
    // Removing a field takes it from all; an owner of nothing is dropped.
    let mut removed = after.clone();
    removed["spec"].as_object_mut().unwrap().remove("replicas");
    update(&writer("other", 3), Some(&after), &mut removed);
    assert_eq!(owners(&removed), ["me Apply 8"]);
}

#[test]
fn status_has_owners_of_its_own() {
    let live = stored(apply(&writer("me", 0), None, &deployment(spec(3, "a:1")), false).unwrap());
    let mut after = live.clone();
    after["status"] = json!({"replicas": 3, "conditions": [{"type": "Available", "status": "True"}]});
    let status = Writer { subresource: "status", ..writer("controller", 1) };
    update(&status, Some(&live), &mut after);
    assert_eq!(owners(&after)[1], "controller Update/status 5");
    // A write of the object itself does not reach it.
    let mut config = deployment(spec(3, "a:1"));
    config["status"] = json!({"replicas": 9});
    let again = apply(&writer("me", 2), Some(&after), &config, false).unwrap();
    assert_eq!(again["status"]["replicas"], 3);
    assert_eq!(owners(&again), owners(&after));
}

#[test]
fn managed_fields_can_be_reset_and_given() {
    let live = stored(apply(&writer("me", 0), None, &deployment(spec(3, "a:1")), false).unwrap());
    for reset in [json!([]), json!([{}])] {
        let mut after = live.clone();
        after["metadata"]["managedFields"] = reset;
        update(&writer("x", 1), Some(&live), &mut after);
        assert!(after["metadata"].get("managedFields").is_none());
        // The next apply starts tracking afresh.
        let next = apply(&writer("me", 2), Some(&after), &deployment(spec(3, "a:1")), false).unwrap();
        assert_eq!(owners(&next).len(), 2, "{:?}", owners(&next));
        assert!(owns(&next, "before-first-apply", ".spec.replicas"));
    }
    for broken in [json!(null), json!([{"manager": "x"}])] {
        let mut after = live.clone();
        after["metadata"]["managedFields"] = broken;
        update(&writer("x", 1), Some(&live), &mut after);
        assert_eq!(owners(&after), owners(&live));
    }
}

#[test]
fn kubectl_moves_from_client_side_apply() {
    let config = deployment(spec(3, "a:1"));
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: config.to_string()});
    update(&writer("kubectl-client-side-apply", 0), None, &mut live);
    let live = stored(live);
    // What kubectl had applied itself it may change without force.
    let next = apply(&writer("kubectl", 1), Some(&live), &deployment(spec(5, "a:2")), false).unwrap();
    assert_eq!(next["spec"]["replicas"], 5);
    let remembered: Value = serde_json::from_str(next["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap()).unwrap();
    assert_eq!(remembered["spec"]["replicas"], 5);
    // What another changed since is a conflict as before.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(7);
    update(&writer("hpa", 2), Some(&live), &mut scaled);
    let error = apply(&writer("kubectl", 3), Some(&scaled), &deployment(spec(5, "a:2")), false).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"hpa\" using apps/v1: .spec.replicas");
}

#[test]
fn bad_configurations_are_refused() {
    let mut twice = deployment(spec(1, "a"));
    let containers = twice["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
    containers.push(containers[0].clone());
    let mut nameless = deployment(spec(1, "a"));
    nameless["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("name");
    let mut version = deployment(spec(1, "a"));
    version["apiVersion"] = json!("apps/v2");
    let mut managed = deployment(spec(1, "a"));
    managed["metadata"]["managedFields"] = json!([]);
    for (config, expect) in [
        (
            twice,
            "failed to create typed patch object (ns/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"web\"]",
        ),
        (
            nameless,
            "failed to create typed patch object (ns/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)",
        ),
        (version, "Incorrect version specified in apply patch. Specified patch version: apps/v2, expected: apps/v1"),
        (managed, "metadata.managedFields must be nil"),
    ] {
        assert_eq!(apply(&writer("me", 0), None, &config, false).unwrap_err().message, expect);
    }
}

#[test]
fn lists_keep_their_order_and_others_items() {
    let base = |env: Value| {
        let mut config = deployment(spec(1, "a"));
        config["spec"]["template"]["spec"]["containers"][0]["env"] = env;
        config
    };
    let name = |n: &str| json!({"name": n, "value": "1"});
    let mut live = base(json!([name("A"), name("B"), name("C")]));
    update(&writer("them", 0), None, &mut live);
    let live = stored(live);
    let merged = apply(&writer("me", 1), Some(&live), &base(json!([name("X"), name("C"), name("A")])), false).unwrap();
    let env = merged["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let names: Vec<&str> = env.iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 4);
    let place = |n: &str| names.iter().position(|m| *m == n).unwrap();
    assert!(place("X") < place("C") && place("C") < place("A"), "{names:?}");
}

#[test]
fn without_a_schema_objects_merge_and_lists_are_values() {
    let w = Writer { schema: None, api_version: "x.io/v1", manager: "me", subresource: "", now: at(0) };
    let config = |spec: Value| json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let live = apply(&w, None, &config(json!({"a": {"b": 1, "c": 2}, "l": [1, 2]})), false).unwrap();
    assert_eq!(live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:l"], json!({}));
    let other = Writer { manager: "you", ..w };
    let next = apply(&other, Some(&live), &config(json!({"a": {"d": 3}})), false).unwrap();
    assert_eq!(next["spec"], json!({"a": {"b": 1, "c": 2, "d": 3}, "l": [1, 2]}));
    assert!(apply(&other, Some(&live), &config(json!({"l": [3]})), false).is_err());
}

#[test]
fn old_updates_are_gathered() {
    let mut live = deployment(spec(0, "a:1"));
    live["metadata"]["annotations"] = json!({"n": "0"});
    update(&writer("m0", 0), None, &mut live);
    for i in 1..15 {
        let mut after = live.clone();
        after["metadata"]["annotations"][format!("k{i}")] = json!("1");
        update(&writer(&format!("m{i:02}"), i), Some(&live), &mut after);
        live = after;
    }
    let all = owners(&live);
    assert_eq!(all.len(), 10, "{all:?}");
    assert!(all[0].starts_with("ancient-changes Update"), "{all:?}");
    assert!(owns(&live, "ancient-changes", ".metadata.annotations.k1"));
}
