//! Deployments and ReplicaSets.

use serde_json::Value;

use super::{ensure, pod, set};

pub fn deployment(object: &mut Value) {
    let Some(spec) = ensure(object, "spec") else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = ensure(spec, "strategy") {
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
    pod::template(spec);
}

pub fn replica_set(object: &mut Value) {
    let Some(spec) = ensure(object, "spec") else { return };
    set(spec, "replicas", 1);
    pod::template(spec);
}
