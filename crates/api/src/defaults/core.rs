//! Defaults.

use serde_json::Value;

pub fn namespace(_: &mut Value) {}

pub fn node(_: &mut Value) {}

pub fn secret(_: &mut Value) {}

pub fn service_account(_: &mut Value) {}
