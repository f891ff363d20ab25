//! Role bindings: whose API groups their references are.

use serde_json::Value;

use super::{each, set, within};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn binding(object: &mut Value) {
    if let Some(role) = within(object, "roleRef") {
        set(role, "apiGroup", GROUP);
    }
    for subject in each(object, "subjects") {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            set(subject, "apiGroup", GROUP);
        }
    }
}
