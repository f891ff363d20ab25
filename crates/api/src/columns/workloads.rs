//! Columns.

use serde_json::Value;

use super::{name, name_age, text};
use crate::resource::Column;

pub const CONTROLLER_REVISION: &[Column] = &[name(), text("Age")];
pub const DEPLOYMENT: &[Column] = &[name(), text("Age")];
pub const PRIORITY_CLASS: &[Column] = &[name(), text("Age")];
pub const REPLICA_SET: &[Column] = &[name(), text("Age")];
pub const RUNTIME_CLASS: &[Column] = &[name(), text("Age")];

pub fn controller_revision(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn deployment(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn priority_class(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn replica_set(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn runtime_class(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}
