//! Fields that selectors may name.

use serde_json::Value;

pub fn event(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn namespace(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn new_event(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn node(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn none(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn pod(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn replica_set(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn secret(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}

pub fn service(_: &Value) -> Vec<(&'static str, String)> {
    vec![]
}
