//! The difference between a pod's status in the API and as it should be, as a strategic merge patch of `pods/status`.
//!
//! Only what differs is sent, and of the conditions only the node's own: others keep theirs.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

const OWN_CONDITIONS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "DisruptionTarget"];

/// `None` when nothing differs.
pub fn patch(before: Option<&PodStatus>, wanted: &PodStatus, uid: &str) -> Option<Value> {
    let before = value(&before.cloned().unwrap_or_default());
    let wanted = value(wanted);
    let mut status = Map::new();
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(wanted.keys()).collect();
    for key in keys {
        let (had, wants) = (before.get(key), wanted.get(key));
        if had == wants {
            continue;
        }
        if key == "conditions" {
            let changed = conditions(had, wants);
            if !changed.is_empty() {
                status.insert(key.clone(), changed.into());
            }
        } else {
            status.insert(key.clone(), wants.cloned().unwrap_or(Value::Null));
        }
    }
    (!status.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": status }))
}

/// All of our own as soon as one differs.
fn conditions(had: Option<&Value>, wants: Option<&Value>) -> Vec<Value> {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let had = list(had);
    let before = |kind: &Value| had.iter().find(|c| c["type"] == *kind);
    let mut own = list(wants);
    own.retain(|c| c["type"].as_str().is_some_and(|t| OWN_CONDITIONS.contains(&t)));
    if own.iter().all(|c| before(&c["type"]) == Some(c)) {
        return Vec::new();
    }
    for wanted in &mut own {
        // A merge keeps what is not named: what went away is named as null.
        for field in ["reason", "message"] {
            let gone = wanted.get(field).is_none() && before(&wanted["type"]).is_some_and(|b| b.get(field).is_some());
            if gone {
                wanted[field] = Value::Null;
            }
        }
    }
    own
}

fn value(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A condition that was already computed so keeps its time, though the API has not heard of it yet.
pub fn keep_times(status: &mut PodStatus, shown: Option<&PodStatus>) {
    let shown = shown.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    for condition in status.conditions.iter_mut().flatten() {
        let same = shown.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status);
        if let Some(same) = same
            && OWN_CONDITIONS.contains(&condition.type_.as_str())
        {
            condition.last_transition_time = same.last_transition_time.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodCondition;

    fn condition(kind: &str, status: &str, reason: Option<&str>) -> PodCondition {
        PodCondition { type_: kind.into(), status: status.into(), reason: reason.map(Into::into), ..PodCondition::default() }
    }

    #[test]
    fn only_what_differs_and_only_our_own_conditions() {
        let before = PodStatus {
            phase: Some("Pending".into()),
            reason: Some("x".into()),
            host_ip: Some("1.2.3.4".into()),
            conditions: Some(vec![
                condition("Ready", "False", Some("Why")),
                condition("PodScheduled", "True", None),
                condition("mine", "False", None),
            ]),
            ..PodStatus::default()
        };
        let mut wanted = before.clone();
        assert_eq!(patch(Some(&before), &wanted, "u"), None);
        wanted.phase = Some("Running".into());
        wanted.reason = None;
        wanted.conditions = Some(vec![condition("Ready", "True", None), condition("mine", "True", None)]);
        let got = patch(Some(&before), &wanted, "u").unwrap();
        let expected = json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running", "reason": null, "conditions": [{"type": "Ready", "status": "True", "reason": null}]}});
        assert_eq!(got, expected);
    }
}
