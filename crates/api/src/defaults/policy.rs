//! Limit ranges and priority classes.

use serde_json::{Map, Value};

use super::{each, ensure, set, within};

/// For containers: the default limit is the maximum, the default request the default limit, else the minimum.
pub fn limit_range(object: &mut Value) {
    let Some(spec) = within(object, "spec") else { return };
    for item in each(spec, "limits").filter(|i| i["type"] == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let given: Map<String, Value> = item[from].as_object().cloned().unwrap_or_default();
            if given.is_empty() {
                continue;
            }
            if let Some(into) = ensure(item, to).and_then(Value::as_object_mut) {
                for (name, amount) in given {
                    into.entry(name).or_insert(amount);
                }
            }
        }
    }
}

pub fn priority_class(object: &mut Value) {
    set(object, "preemptionPolicy", "PreemptLowerPriority");
}
