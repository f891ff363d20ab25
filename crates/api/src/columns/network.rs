//! Columns.

use serde_json::Value;

use super::{name, name_age, text};
use crate::resource::Column;

pub const ENDPOINTS: &[Column] = &[name(), text("Age")];
pub const ENDPOINT_SLICE: &[Column] = &[name(), text("Age")];
pub const INGRESS: &[Column] = &[name(), text("Age")];
pub const INGRESS_CLASS: &[Column] = &[name(), text("Age")];
pub const SERVICE: &[Column] = &[name(), text("Age")];

pub fn endpoint_slice(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn endpoints(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn ingress(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn ingress_class(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}

pub fn service(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}
