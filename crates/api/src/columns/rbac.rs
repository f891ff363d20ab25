//! Role bindings: the role, and who has it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, age, list, name, or, text, wide};
use crate::resource::Column;

pub const BINDING: &[Column] = &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];

pub fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", or(&o["roleRef"]["kind"], ""), or(&o["roleRef"]["name"], ""));
    let subjects = |kind: &str| {
        let shown = |s: &Value| match kind {
            "ServiceAccount" => format!("{}/{}", or(&s["namespace"], ""), or(&s["name"], "")),
            _ => or(&s["name"], "").to_string(),
        };
        let all: Vec<String> = list(&o["subjects"]).iter().filter(|s| s["kind"] == kind).map(shown).collect();
        json!(all.join(", "))
    };
    vec![name(o), json!(role), age(o, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}
