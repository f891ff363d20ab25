//! Ingresses and their classes.

use serde_json::Value;

use super::{At, Out, meta};
use crate::{Cause, names};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CONTROLLER_BYTES_MAX: usize = 250;

pub fn ingress(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let spec = At::root(new).get("spec");
    let (backend, rules, class) = (spec.get("defaultBackend"), spec.get("rules"), spec.get("ingressClassName"));
    if !backend.is_set() && !rules.given() {
        out.invalid(&spec, "either `defaultBackend` or `rules` must be specified");
    }
    if backend.is_set() {
        backend_of(&backend, &mut out);
    }
    for rule in rules.items() {
        host(&rule.get("host"), &mut out);
        if rule.get("http").is_set() {
            paths(&rule.get("http.paths"), &mut out);
        }
    }
    for tls in spec.get("tls").items() {
        tls.get("hosts").items().iter().for_each(|h| host(h, &mut out));
        out.matches(&tls.get("secretName"), names::dns1123_subdomain);
    }
    out.matches(&class, names::dns1123_subdomain);
    let annotation = At { v: &new["metadata"]["annotations"][CLASS_ANNOTATION], path: "metadata.annotations".into() };
    if old.is_none() && class.given() && annotation.given() {
        let at = At { path: format!("{}[{CLASS_ANNOTATION}]", annotation.path), ..annotation };
        out.invalid(&at, "can not be set when the class field is also set");
    }
    out.0
}

fn host(at: &At, out: &mut Out) {
    if !at.given() {
        return;
    }
    if at.text().parse::<std::net::IpAddr>().is_ok() {
        return out.invalid(at, "must be a DNS name, not an IP address");
    }
    out.each(at, if at.text().contains('*') { names::wildcard_subdomain(at.text()) } else { names::dns1123_subdomain(at.text()) });
}

fn paths(at: &At, out: &mut Out) {
    if !at.given() {
        out.required(at, "");
    }
    for item in at.items() {
        let (path, kind) = (item.get("path"), item.get("pathType"));
        match kind.text() {
            "" => out.required(&kind, "pathType must be specified"),
            "Exact" | "Prefix" => strict_path(&path, out),
            "ImplementationSpecific" => {
                if path.given() && !path.text().starts_with('/') {
                    out.invalid(&path, "must be an absolute path");
                }
            }
            _ => out.one_of(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
        }
        backend_of(&item.get("backend"), out);
    }
}

fn strict_path(path: &At, out: &mut Out) {
    let text = path.text();
    if !text.starts_with('/') {
        out.invalid_value(path, text, "must be an absolute path");
    }
    for sequence in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|s| text.contains(**s)) {
        out.invalid(path, &format!("must not contain '{sequence}'"));
    }
    for suffix in ["/..", "/."].iter().filter(|s| text.ends_with(**s)) {
        out.invalid(path, &format!("cannot end with '{suffix}'"));
    }
}

fn backend_of(at: &At, out: &mut Out) {
    let (service, resource) = (at.get("service"), at.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => return out.invalid_value(at, "", "cannot set both resource and service backends"),
        (false, false) => return out.invalid_value(at, "", "resource or service backend is required"),
        (false, true) => {
            for field in ["kind", "name"].iter().filter(|f| !resource.get(f).given()) {
                out.required(&resource.get(field), &format!("{field} is required"));
            }
            return;
        }
        (true, false) => out.named(&service.get("name"), names::dns1035_label),
    }
    let (name, number) = (service.get("port.name"), service.get("port.number"));
    let numbered = number.int().is_some_and(|n| n != 0);
    match (name.given(), numbered) {
        (true, true) => out.invalid_value(at, "", "cannot set both port name & port number"),
        (true, false) => out.each(&name, names::port_name(name.text())),
        (false, true) => out.each(&number, names::port_number(number.int().unwrap_or(0))),
        (false, false) => out.required(at, "port name or number is required"),
    }
}

pub fn ingress_class(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let controller = At::root(new).get("spec.controller");
    let text = controller.text();
    let domain_path = |(domain, path): (&str, &str)| !path.is_empty() && names::dns1123_subdomain(domain).is_empty();
    if let Some(old) = old {
        out.immutable(&controller, old);
    } else if text.is_empty() {
        out.required(&controller, "");
    } else if text.len() > CONTROLLER_BYTES_MAX {
        out.too_long(&controller, CONTROLLER_BYTES_MAX);
    } else if !text.split_once('/').is_some_and(domain_path) {
        out.invalid(&controller, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    let parameters = At::root(new).get("spec.parameters");
    if parameters.is_set() {
        for field in ["kind", "name"].iter().filter(|f| !parameters.get(f).given()) {
            out.required(&parameters.get(field), &format!("{field} is required"));
        }
        let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
        out.some_of(&scope, &["Cluster", "Namespace"]);
        if scope.text() == "Namespace" && !namespace.given() {
            out.required(&namespace, "`parameters.scope` is set to 'Namespace'");
        }
        if scope.text() == "Cluster" && namespace.given() {
            out.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'");
        }
    }
    out.0
}
