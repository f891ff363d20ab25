//! Columns.

use serde_json::Value;

use super::{name, name_age, text};
use crate::resource::Column;

pub const CONFIG_MAP: &[Column] = &[name(), text("Age")];
pub const EVENT: &[Column] = &[name(), text("Age")];
pub const LEASE: &[Column] = &[name(), text("Age")];
pub const NAMESPACE: &[Column] = &[name(), text("Age")];
pub const NODE: &[Column] = &[name(), text("Age")];
pub const RESOURCE_QUOTA: &[Column] = &[name(), text("Age")];
pub const SECRET: &[Column] = &[name(), text("Age")];
pub const SERVICE_ACCOUNT: &[Column] = &[name(), text("Age")];

pub fn config_map(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn event(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn lease(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn namespace(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn new_event(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn node(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn resource_quota(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn secret(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn service_account(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}
