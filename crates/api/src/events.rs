//! `events.k8s.io/v1` events are the core group's under other names: both are one stored object.

use serde_json::{Map, Value};

/// (`events.k8s.io/v1`, `v1`)
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, api_version: &str, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    map.insert("apiVersion".into(), api_version.into());
    let taken: Map<String, Value> = names.filter_map(|(from, to)| Some((to.to_string(), map.remove(from)?))).collect();
    map.extend(taken);
}

/// To the form that is stored: `v1`.
pub fn to_core(object: &mut Value) {
    rename(object, "v1", NAMES.into_iter());
}

/// From the stored form to `events.k8s.io/v1`.
pub fn from_core(object: &mut Value) {
    rename(object, "events.k8s.io/v1", NAMES.into_iter().map(|(new, core)| (core, new)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back_is_the_same() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m",
            "source": {"component": "c"}, "count": 3, "reason": "R", "reportingComponent": "c", "lastTimestamp": "2026-01-01T00:00:00Z"});
        let mut event = core.clone();
        from_core(&mut event);
        assert_eq!(event["note"], "m");
        assert_eq!(event["regarding"]["kind"], "Pod");
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert!(event.get("message").is_none());
        to_core(&mut event);
        assert_eq!(event, core);
    }
}
