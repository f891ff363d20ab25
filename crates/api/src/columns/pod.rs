//! Columns.

use serde_json::Value;

use super::{name, name_age, text};
use crate::resource::Column;

pub const COLUMNS: &[Column] = &[name(), text("Age")];

pub fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    name_age(object, now)
}
