//! Namespaces, service accounts, leases.

use serde_json::Value;

use super::{At, Out, meta};
use crate::{Cause, names};

pub fn namespace(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_label, &mut out);
    for finalizer in At::root(new).get("spec.finalizers").items() {
        out.each(&finalizer, names::qualified(finalizer.text()));
        if !finalizer.text().contains('/') && finalizer.text() != "kubernetes" {
            out.invalid(&finalizer, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    out.0
}

pub fn service_account(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    super::metadata_only(new, old)
}

pub fn lease(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let spec = At::root(new).get("spec");
    out.positive(&spec.get("leaseDurationSeconds"));
    out.non_negative(&spec.get("leaseTransitions"));
    out.0
}
