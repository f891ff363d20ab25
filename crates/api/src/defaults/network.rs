//! Defaults.

use serde_json::Value;

pub fn endpoint_slice(_: &mut Value) {}

pub fn endpoints(_: &mut Value) {}

pub fn ingress_class(_: &mut Value) {}

pub fn service(_: &mut Value) {}
