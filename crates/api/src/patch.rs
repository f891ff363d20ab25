//! The three patches that name changes: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge
//! patch. (Apply patches are [`crate::apply`].)
//!
//! Source of the third: `k8s.io/apimachinery` `strategicpatch` and "Update API Objects in Place Using kubectl patch". Pure; the
//! caller defaults and validates what comes out.

use serde_json::{Map, Value};

use crate::limits::COPIED_BYTES_MAX;
use crate::schema::Schema;
use crate::shape::Spot;
use crate::status::{Cause, Details, Reason, Status};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// A JSON patch: all operations or none.
///
/// 400 for what is no patch, 422 for one that does not fit the object (a failed `test` among them).
pub fn json(object: &Value, patch: &Value) -> Result<Value, Status> {
    let bad = |e: serde_json::Error| Status::bad_request(format!("error decoding patch: {e}"));
    let operations: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(bad)?;
    let mut after = object.clone();
    let mut copied = 0;
    for operation in &operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            // A few copies of everything into itself would fill the memory.
            copied += copy.from.resolve(&after).map_or(0, |v| v.to_string().len());
            if copied > COPIED_BYTES_MAX {
                let why = format!("Request entity too large: the patch copies more than {COPIED_BYTES_MAX} bytes");
                return Err(Status::new(Reason::RequestEntityTooLarge, why));
            }
        }
        json_patch::patch(&mut after, std::slice::from_ref(operation)).map_err(|e| {
            let named = serde_json::to_value(operation).unwrap_or_default();
            rejected(format!("{} operation does not apply: {}: {}", named["op"].as_str().unwrap_or_default(), e.path, e.kind))
        })?;
    }
    Ok(after)
}

/// 422 in the words that clients know, with the reason behind them.
fn rejected(why: String) -> Status {
    let message = format!("the server rejected our request due to an error in our request: {why}");
    let cause = Cause { reason: "UnexpectedServerResponse".into(), message: why, field: String::new() };
    Status { details: Some(Details { causes: vec![cause], ..Details::default() }), ..Status::new(Reason::Invalid, message) }
}

/// A JSON merge patch.
pub fn merge(object: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: a merge patch must be an object"));
    }
    let mut after = object.clone();
    json_patch::merge(&mut after, patch);
    Ok(after)
}

/// A strategic merge patch: lists merge by the keys that the kind's type names. Without a schema it is a merge patch that
/// knows the directives.
pub fn strategic(schema: Option<&Schema>, object: &Value, patch: &Value) -> Result<Value, Status> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(Status::bad_request("error decoding patch: a strategic merge patch must be an object"));
    };
    merge_map(Spot::of(schema), object.clone(), patch.clone()).map(Value::Object).map_err(|why| Status::bad_request(why.0))
}

/// Why a patch is no patch for this object.
struct Wrong(String);

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(why.into()))
}

fn as_list(value: Value, what: &str) -> Result<Vec<Value>, Wrong> {
    match value {
        Value::Array(list) => Ok(list),
        _ => wrong(format!("invalid patch format of {what}")),
    }
}

fn merge_map(spot: Spot<'_>, mut object: Map<String, Value>, mut patch: Map<String, Value>) -> Result<Map<String, Value>, Wrong> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(d) if d == "replace" => return Ok(patch),
        Some(d) if d == "delete" => return Ok(Map::new()),
        Some(d) => return wrong(format!("unknown patch type: {d} in map: {}", Value::Object(patch))),
    }
    retain_keys(&mut object, &mut patch)?;
    order_lists(spot, &mut object, &mut patch)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            let gone = as_list(value, "primitive list")?;
            if let Some(Value::Array(held)) = object.get_mut(list) {
                held.retain(|v| !gone.contains(v));
            }
            continue;
        }
        let field = spot.child(&key);
        let merged = match (object.remove(&key), value) {
            (_, Value::Null) => None,
            (Some(Value::Object(held)), Value::Object(new)) => Some(Value::Object(merge_map(field, held, new)?)),
            (Some(Value::Array(held)), Value::Array(new)) if merges(field) => Some(Value::Array(merge_list(field, held, new)?)),
            (_, new) => plain(new),
        };
        object.extend(merged.map(|m| (key, m)));
    }
    Ok(object)
}

fn merges(field: Spot<'_>) -> bool {
    field.field().is_some_and(|f| f.patch_merge)
}

/// What a patch brings where nothing was: without nulls, directives and what they are on.
fn plain(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let directive = |k: &str| k == RETAIN_KEYS || k.starts_with(ELEMENT_ORDER) || k.starts_with(DELETE_FROM);
            Some(Value::Object(map.into_iter().filter(|(k, _)| !directive(k)).filter_map(|(k, v)| Some((k, plain(v)?))).collect()))
        }
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(plain).collect())),
        other => Some(other),
    }
}

/// `$retainKeys: [a, b]`: all other fields of the object go.
fn retain_keys(object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Wrong> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = as_list(keys, "retainKeys")?;
    let named = |key: &str| keys.iter().any(|k| k == key);
    for (key, value) in patch.iter() {
        if !value.is_null() && !key.starts_with('$') && !named(key) {
            return wrong("invalid patch format of retainKeys");
        }
    }
    object.retain(|key, _| named(key));
    Ok(())
}

/// `$setElementOrder/<list>`: the list is merged with its patch, then ordered.
fn order_lists(spot: Spot<'_>, object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Wrong> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let order = as_list(patch.remove(&directive).unwrap_or_default(), "setElementOrder list")?;
        let name = &directive[ELEMENT_ORDER.len()..];
        let field = spot.child(name);
        let merge_key = field.field().and_then(|f| f.patch_merge_key);
        let gone = patch.remove(&format!("{DELETE_FROM}{name}"));
        let new = match patch.get(name) {
            Some(Value::Null) => continue,
            Some(Value::Array(_)) => Some(as_list(patch.remove(name).unwrap_or_default(), "setElementOrder list")?),
            Some(_) => return wrong("invalid patch format of setElementOrder list"),
            None => None,
        };
        let mut held = match object.remove(name) {
            Some(Value::Array(list)) => Some(list),
            None | Some(Value::Null) => None,
            Some(_) => return wrong("invalid patch format of setElementOrder list"),
        };
        if let (Some(held), Some(gone)) = (&mut held, gone) {
            let gone = as_list(gone, "primitive list")?;
            held.retain(|v| !gone.contains(v));
        }
        if let Some(new) = &new {
            check_order(new, &order, merge_key)?;
        }
        let merged = match (held.clone(), new) {
            (None, None) => continue,
            (Some(held), None) => held,
            (None, Some(new)) => new.into_iter().filter_map(plain).collect(),
            (Some(held), Some(new)) if merges(field) => merge_list(field, held, new)?,
            (Some(_), Some(new)) => new.into_iter().filter_map(plain).collect(),
        };
        let ordered = in_order(merged, &order, &held.unwrap_or_default(), merge_key);
        object.insert(name.to_string(), Value::Array(ordered));
    }
    Ok(())
}

/// Two items are one if they are equal, or if their keys are.
fn same(a: &Value, b: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => a.get(key).is_some_and(|v| !v.is_null() && b.get(key) == Some(v)),
        None => a == b,
    }
}

/// The items of the patch must be named by the order, in that order.
fn check_order(new: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), Wrong> {
    let mut order_left = order.iter();
    for item in new.iter().filter(|v| v.get(DIRECTIVE).is_none()) {
        if !order.is_empty() && !order_left.any(|o| same(o, item, merge_key)) {
            let (new, order) = (Value::from(new), Value::from(order));
            return wrong(format!("The order in patch list:\n{new}\n doesn't match $setElementOrder list:\n{order}\n"));
        }
    }
    Ok(())
}

/// Items that `order` names come in its order; the others keep their places relative to what stood around them.
fn in_order(list: Vec<Value>, order: &[Value], before: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let place = |of: &[Value], v: &Value| of.iter().position(|o| same(o, v, merge_key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|v| place(order, v).is_some());
    named.sort_by_key(|v| place(order, v));
    others.sort_by_key(|v| place(before, v).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(n), Some(o)) = (named.peek(), others.peek()) {
        let stood_before = matches!((place(before, o), place(before, n)), (Some(o), Some(n)) if o < n);
        out.extend(if stood_before { others.next() } else { named.next() });
    }
    out.extend(named);
    out.extend(others);
    out
}

fn merge_list(field: Spot<'_>, held: Vec<Value>, new: Vec<Value>) -> Result<Vec<Value>, Wrong> {
    let maps = held.iter().chain(&new).all(Value::is_object);
    if !maps {
        if held.iter().chain(&new).any(|v| v.is_object() || v.is_array()) {
            return wrong("lists of lists are not supported");
        }
        let mut merged = held.clone();
        for v in &new {
            if !merged.contains(v) {
                merged.push(v.clone());
            }
        }
        return Ok(in_order(merged, &new, &held, None));
    }
    let Some(key) = field.field().and_then(|f| f.patch_merge_key) else {
        return wrong(format!("cannot merge lists without merge key for {}", field.field().map_or("", |f| f.name)));
    };
    let (held, new) = special_items(held, new, key)?;
    let mut merged = held.clone();
    for item in &new {
        let Value::Object(patch) = item else { continue };
        if !patch.contains_key(key) {
            return wrong(format!("map: {item} does not contain declared merge key: {key}"));
        }
        match merged.iter_mut().find(|m| same(m, item, Some(key))) {
            Some(slot) => {
                let Value::Object(old) = slot.take() else { continue };
                *slot = Value::Object(merge_map(field.items(), old, patch.clone())?);
            }
            None => merged.extend(plain(item.clone())),
        }
    }
    Ok(in_order(merged, &new, &held, Some(key)))
}

/// Carries out `$patch: delete` and `$patch: replace` among the items of a list; gives what is held and what is to be merged.
fn special_items(mut held: Vec<Value>, new: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), Wrong> {
    let (special, new): (Vec<Value>, Vec<Value>) = new.into_iter().partition(|v| v.get(DIRECTIVE).is_some());
    let mut replace = false;
    for item in &special {
        match item[DIRECTIVE].as_str().unwrap_or_default() {
            "delete" if item.get(key).is_none() => {
                return wrong(format!("map: {item} does not contain declared merge key: {key}"));
            }
            "delete" => held.retain(|h| !same(h, item, Some(key))),
            "replace" => replace = true,
            "merge" => return wrong("merging lists cannot yet be specified in the patch"),
            other => return wrong(format!("unknown patch type: {other} in map: {item}")),
        }
    }
    Ok(if replace { (vec![], new) } else { (held, new) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    fn deployment() -> Value {
        json!({"metadata": {"name": "web", "labels": {"a": "1"}, "finalizers": ["x", "y"]},
            "spec": {"replicas": 3, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {"spec": {"nodeSelector": {"disk": "ssd"},
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "a"}],
                "containers": [
                    {"name": "web", "image": "web:1", "args": ["a", "b"],
                     "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                     "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]},
                    {"name": "side", "image": "side:1"}]}}}})
    }

    /// `patch` changes what `pointer` points at into `expect`.
    fn check(pod_spec: bool, patch: Value, pointer: &str, expect: Value) {
        let patch = if pod_spec { json!({"spec": {"template": {"spec": patch}}}) } else { patch };
        let pointer = if pod_spec { format!("/spec/template/spec{pointer}") } else { pointer.to_string() };
        let schema = schema::for_api_version("apps/v1", "Deployment");
        let after = strategic(schema, &deployment(), &patch).unwrap_or_else(|e| panic!("{patch}: {e}"));
        assert_eq!(after.pointer(&pointer).cloned().unwrap_or_default(), expect, "{patch}");
    }

    #[test]
    fn kubectls_patches_do_what_they_say() {
        // set image, with and without the order of elements
        check(true, json!({"containers": [{"name": "web", "image": "web:2"}]}), "/containers/0/image", json!("web:2"));
        check(true, json!({"containers": [{"name": "web", "image": "web:2"}]}), "/containers/1/image", json!("side:1"));
        let ordered =
            json!({"$setElementOrder/containers": [{"name": "side"}, {"name": "web"}], "containers": [{"name": "web", "image": "web:2"}]});
        check(true, ordered.clone(), "/containers/0/name", json!("side"));
        check(true, ordered, "/containers/1/image", json!("web:2"));
        // a new container comes where the order says
        let added = json!({"$setElementOrder/containers": [{"name": "web"}, {"name": "new"}, {"name": "side"}], "containers": [{"name": "new", "image": "n"}]});
        check(true, added, "/containers/1", json!({"name": "new", "image": "n"}));
        // without an order a new one comes last
        check(true, json!({"containers": [{"name": "new", "image": "n"}]}), "/containers/0/name", json!("new"));
        // deletion by key, of a list, of a field, of a map
        check(true, json!({"containers": [{"name": "side", "$patch": "delete"}]}), "/containers/1", Value::Null);
        check(true, json!({"containers": [{"name": "web", "env": null}]}), "/containers/0/env", Value::Null);
        check(
            true,
            json!({"containers": [{"name": "web", "env": [{"name": "A", "$patch": "delete"}]}]}),
            "/containers/0/env",
            json!([{"name": "B", "value": "2"}]),
        );
        check(true, json!({"nodeSelector": {"disk": null, "zone": "a"}}), "/nodeSelector", json!({"zone": "a"}));
        check(true, json!({"nodeSelector": {"$patch": "replace", "zone": "a"}}), "/nodeSelector", json!({"zone": "a"}));
        check(true, json!({"nodeSelector": {"$patch": "delete"}}), "/nodeSelector", json!({}));
        check(false, json!({"metadata": {"labels": {"a": null, "b": "2"}}}), "/metadata/labels", json!({"b": "2"}));
        // env by name, ports by containerPort
        check(
            true,
            json!({"containers": [{"name": "web", "env": [{"name": "B", "value": "3"}]}]}),
            "/containers/0/env/1",
            json!({"name": "B", "value": "3"}),
        );
        check(
            true,
            json!({"containers": [{"name": "web", "ports": [{"containerPort": 80, "name": "www"}]}]}),
            "/containers/0/ports",
            json!([{"containerPort": 80, "protocol": "TCP", "name": "www"}]),
        );
        check(
            true,
            json!({"containers": [{"name": "web", "ports": [{"containerPort": 81}]}]}),
            "/containers/0/ports/0",
            json!({"containerPort": 81}),
        );
        // lists without a strategy are replaced
        check(true, json!({"containers": [{"name": "web", "args": ["c"]}]}), "/containers/0/args", json!(["c"]));
        check(true, json!({"tolerations": [{"key": "b"}]}), "/tolerations", json!([{"key": "b"}]));
        // a whole list replaced
        check(
            true,
            json!({"containers": [{"$patch": "replace"}, {"name": "only", "image": "o"}]}),
            "/containers",
            json!([{"name": "only", "image": "o"}]),
        );
        // retained keys
        check(
            false,
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            "/spec/strategy",
            json!({"type": "Recreate"}),
        );
        check(
            true,
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            "/volumes",
            json!([{"name": "v", "hostPath": {"path": "/x"}}]),
        );
        // primitive lists
        check(false, json!({"metadata": {"finalizers": ["z"]}}), "/metadata/finalizers", json!(["z", "x", "y"]));
        check(false, json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}), "/metadata/finalizers", json!(["y"]));
        check(
            false,
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"], "$setElementOrder/finalizers": ["z", "y"], "finalizers": ["z"]}}),
            "/metadata/finalizers",
            json!(["z", "y"]),
        );
        // what was not there comes without nulls and directives
        check(true, json!({"affinity": {"x": null, "y": {"$patch": "delete"}, "z": 1}}), "/affinity", json!({"z": 1}));
        check(
            true,
            json!({"initContainers": [{"name": "i", "$patch": "delete"}, {"name": "j"}]}),
            "/initContainers",
            json!([{"name": "j"}]),
        );
    }

    #[test]
    fn bad_strategic_patches_are_400() {
        let schema = schema::for_api_version("apps/v1", "Deployment");
        let spec = |patch: Value| json!({"spec": {"template": {"spec": patch}}});
        for (patch, expect) in [
            (spec(json!({"containers": [{"image": "x"}]})), "map: {\"image\":\"x\"} does not contain declared merge key: name"),
            (spec(json!({"containers": [{"$patch": "delete"}]})), "map: {\"$patch\":\"delete\"} does not contain declared merge key: name"),
            (spec(json!({"$patch": "what"})), "unknown patch type: \"what\" in map: {}"),
            (json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}), "invalid patch format of retainKeys"),
            (
                spec(json!({"$setElementOrder/containers": [{"name": "side"}], "containers": [{"name": "web"}]})),
                "The order in patch list:\n[{\"name\":\"web\"}]\n doesn't match $setElementOrder list:\n[{\"name\":\"side\"}]\n",
            ),
            (json!([]), "error decoding patch: a strategic merge patch must be an object"),
        ] {
            let status = strategic(schema, &deployment(), &patch).unwrap_err();
            assert_eq!((status.message.as_str(), status.code), (expect, 400), "{patch}");
        }
    }

    #[test]
    fn json_patches_apply_whole_or_not() {
        let object = json!({"a": {"b": 1}, "l": [1, 2]});
        let good = json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "replace", "path": "/a/b", "value": 2}, {"op": "add", "path": "/l/-", "value": 3}]);
        assert_eq!(json(&object, &good).unwrap(), json!({"a": {"b": 2}, "l": [1, 2, 3]}));
        for (patch, code) in [
            (json!([{"op": "test", "path": "/a/b", "value": 2}]), 422),
            (json!([{"op": "remove", "path": "/x/y"}]), 422),
            (json!([{"op": "frob", "path": "/x"}]), 400),
            (json!({"op": "add"}), 400),
        ] {
            let status = json(&object, &patch).unwrap_err();
            assert_eq!(status.code, code, "{patch}: {status}");
            if code == 422 {
                assert!(status.message.starts_with("the server rejected our request due to an error in our request: "), "{status}");
            }
        }
    }

    #[test]
    fn a_patch_cannot_grow_an_object_without_bound() {
        let copy = json!({"op": "copy", "from": "", "path": "/l/-"});
        let patch = Value::Array(vec![copy; 64]);
        assert_eq!(json(&json!({"l": ["0123456789"]}), &patch).unwrap_err().code, 413);
    }

    #[test]
    fn merge_patches_replace_lists() {
        let after = merge(&deployment(), &json!({"metadata": {"labels": {"a": null}}, "spec": {"template": {"spec": {"containers": []}}}}))
            .unwrap();
        assert_eq!(after["metadata"]["labels"], json!({}));
        assert_eq!(after["spec"]["template"]["spec"]["containers"], json!([]));
        assert_eq!(merge(&json!({}), &json!([])).unwrap_err().code, 400);
    }
}
