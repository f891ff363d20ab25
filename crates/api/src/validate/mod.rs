//! Whether an object may be stored: one cause for every field that is wrong, in upstream's words.
//!
//! Runs on defaulted objects whose structure was checked ([`crate::schema::check`]); with an old state it also guards what
//! may not change. Knows one object at a time: what depends on others is admission. Source:
//! `k8s.io/kubernetes/pkg/apis/…/validation`.

pub mod config;
pub mod core;
pub mod endpoints;
pub mod event;
pub mod ingress;
pub mod node;
pub mod pod;
pub mod policy;
pub mod rbac;
pub mod service;
pub mod workloads;

mod meta;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::{Cause, names, selector};

pub(crate) use meta::meta;

const IMMUTABLE: &str = "field is immutable";

/// Kinds of which only the metadata is checked.
pub fn metadata_only(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    out.0
}

/// Reviews have no name. What they ask about is checked where they are answered.
pub fn review(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    vec![]
}

/// A value and where it is: `spec.containers[0].image`.
#[derive(Clone)]
pub(crate) struct At<'v> {
    pub v: &'v Value,
    pub path: String,
}

impl<'v> At<'v> {
    pub fn root(v: &'v Value) -> Self {
        At { v, path: String::new() }
    }

    /// A field; a dotted name goes down several steps.
    pub fn get(&self, name: &str) -> At<'v> {
        let v = name.split('.').fold(self.v, |v, part| &v[part]);
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        At { v, path }
    }

    pub fn items(&self) -> Vec<At<'v>> {
        let all = self.v.as_array().map_or(&[][..], Vec::as_slice);
        all.iter().enumerate().map(|(i, v)| At { v, path: format!("{}[{i}]", self.path) }).collect()
    }

    /// The entries of a map: `data[key]`.
    pub fn entries(&self) -> Vec<(&'v str, At<'v>)> {
        let all = self.v.as_object().into_iter().flatten();
        all.map(|(k, v)| (k.as_str(), At { v, path: format!("{}[{k}]", self.path) })).collect()
    }

    pub fn text(&self) -> &'v str {
        self.v.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.v.as_i64()
    }

    /// True for what is there and not empty.
    pub fn given(&self) -> bool {
        match self.v {
            Value::Null => false,
            Value::String(s) => !s.is_empty(),
            Value::Array(l) => !l.is_empty(),
            _ => true,
        }
    }

    /// True for what is there, also `{}`.
    pub fn is_set(&self) -> bool {
        !self.v.is_null()
    }
}

/// The causes found so far.
#[derive(Default)]
pub(crate) struct Out(pub Vec<Cause>);

impl Out {
    pub fn required(&mut self, at: &At, detail: &str) {
        self.0.push(Cause::required(&*at.path, detail));
    }

    pub fn invalid(&mut self, at: &At, detail: &str) {
        self.0.push(Cause::invalid(&*at.path, at.v, detail));
    }

    /// An invalid value that is not the one that is there.
    pub fn invalid_value(&mut self, at: &At, value: impl Into<Value>, detail: &str) {
        self.0.push(Cause::invalid(&*at.path, &value.into(), detail));
    }

    pub fn forbidden(&mut self, at: &At, detail: &str) {
        self.0.push(Cause::forbidden(&*at.path, detail));
    }

    pub fn duplicate(&mut self, at: &At) {
        self.0.push(Cause::duplicate(&*at.path, at.v));
    }

    pub fn not_found(&mut self, at: &At) {
        let message = format!("Not found: {}", at.v);
        self.0.push(Cause { reason: "FieldValueNotFound".into(), message, field: at.path.clone() });
    }

    pub fn too_many(&mut self, at: &At, found: usize, max: usize) {
        let message = format!("Too many: {found}: must have at most {max} items");
        self.0.push(Cause { reason: "FieldValueTooMany".into(), message, field: at.path.clone() });
    }

    pub fn too_long(&mut self, at: &At, max_bytes: usize) {
        self.0.push(Cause::too_long(&*at.path, max_bytes));
    }

    /// One cause for each reason why the value is wrong.
    pub fn each(&mut self, at: &At, reasons: Vec<String>) {
        reasons.iter().for_each(|r| self.invalid(at, r));
    }

    /// A text that is there must keep a rule.
    pub fn matches(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        if at.given() {
            self.each(at, rule(at.text()));
        }
    }

    /// A text must be there and keep a rule.
    pub fn named(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        if at.given() { self.each(at, rule(at.text())) } else { self.required(at, "") }
    }

    /// What is given must be one of these.
    pub fn one_of(&mut self, at: &At, allowed: &[&str]) {
        if at.given() && !allowed.contains(&at.text()) {
            self.0.push(Cause::not_supported(&*at.path, at.v, allowed));
        }
    }

    pub fn some_of(&mut self, at: &At, allowed: &[&str]) {
        if at.given() { self.one_of(at, allowed) } else { self.required(at, "") }
    }

    pub fn non_negative(&mut self, at: &At) {
        if at.int().is_some_and(|n| n < 0) {
            self.invalid(at, "must be greater than or equal to 0");
        }
    }

    pub fn positive(&mut self, at: &At) {
        if at.int().is_some_and(|n| n <= 0) {
            self.invalid(at, "must be greater than 0");
        }
    }

    pub fn within(&mut self, at: &At, low: i64, high: i64) {
        if at.int().is_some_and(|n| !(low..=high).contains(&n)) {
            self.invalid(at, &names::between(low, high));
        }
    }

    /// A port as a number or by name.
    pub fn port_or_name(&mut self, at: &At) {
        match at.v {
            Value::String(name) => self.each(at, names::port_name(name)),
            other => self.each(at, names::port_number(other.as_i64().unwrap_or(0))),
        }
    }

    /// What may not change.
    pub fn immutable(&mut self, new: &At, old: &Value) {
        let old = new.path.split('.').fold(old, |v, part| &v[part]);
        if new.v != old {
            self.invalid(new, IMMUTABLE);
        }
    }

    /// An amount that is not negative.
    pub fn quantity(&mut self, at: &At) -> Option<Quantity> {
        match Quantity::from_value(at.v) {
            Ok(amount) if amount.is_negative() => {
                self.invalid(at, "must be greater than or equal to 0");
                Some(amount)
            }
            Ok(amount) => Some(amount),
            Err(e) => {
                self.invalid(at, &e.to_string());
                None
            }
        }
    }

    /// An address that endpoints or Services may have.
    pub fn address(&mut self, at: &At) {
        let Ok(ip) = at.text().parse::<std::net::IpAddr>() else { return self.each(at, names::ip(at.text())) };
        if ip.is_unspecified() {
            self.invalid(at, "may not be unspecified (0.0.0.0 or ::)");
        }
        if ip.is_loopback() {
            self.invalid(at, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
        }
        let link_local = match ip {
            std::net::IpAddr::V4(v4) => v4.is_link_local(),
            std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if link_local {
            self.invalid(at, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
        }
    }

    pub fn label_selector(&mut self, at: &At) {
        self.0.extend(selector::validate(at.v, &at.path));
    }

    pub fn labels(&mut self, at: &At) {
        self.0.extend(selector::labels(at.v, &at.path));
    }
}

#[cfg(test)]
mod tests;
