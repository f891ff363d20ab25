//! Probes and lifecycle hooks.

use super::super::{At, Out};
use crate::names;

const SECONDS_AND_COUNTS: [&str; 5] = ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];

pub(super) fn probes_and_hooks(container: &At, out: &mut Out) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let at = container.get(name);
        if at.is_set() {
            probe(&at, name, out);
        }
    }
    for hook in ["postStart", "preStop"] {
        let at = container.get("lifecycle").get(hook);
        if at.is_set() {
            handler(&at, &["exec", "httpGet", "tcpSocket", "sleep"], out);
        }
    }
}

fn probe(at: &At, name: &str, out: &mut Out) {
    handler(at, &["exec", "httpGet", "tcpSocket", "grpc"], out);
    SECONDS_AND_COUNTS.iter().for_each(|f| out.non_negative(&at.get(f)));
    let (success, grace) = (at.get("successThreshold"), at.get("terminationGracePeriodSeconds"));
    if name == "readinessProbe" {
        if grace.is_set() {
            out.invalid(&grace, "must not be set for readinessProbes");
        }
        return;
    }
    if success.int().is_some_and(|n| n != 1) {
        out.invalid(&success, "must be 1");
    }
    out.positive(&grace);
}

fn handler(at: &At, kinds: &[&str], out: &mut Out) {
    let given: Vec<&str> = kinds.iter().copied().filter(|k| at.get(k).is_set()).collect();
    if given.is_empty() {
        out.required(at, "must specify a handler type");
    }
    for extra in given.iter().skip(1) {
        out.forbidden(&at.get(extra), "may not specify more than 1 handler type");
    }
    let Some(kind) = given.first() else { return };
    let action = at.get(kind);
    match *kind {
        "exec" if !action.get("command").given() => out.required(&action.get("command"), ""),
        "httpGet" => {
            if !action.get("path").given() {
                out.required(&action.get("path"), "");
            }
            out.port_or_name(&action.get("port"));
            out.some_of(&action.get("scheme"), &["HTTP", "HTTPS"]);
            for header in action.get("httpHeaders").items() {
                out.each(&header.get("name"), names::http_header(header.get("name").text()));
            }
        }
        "tcpSocket" => out.port_or_name(&action.get("port")),
        "grpc" => out.each(&action.get("port"), names::port_number(action.get("port").int().unwrap_or(0))),
        "sleep" => out.non_negative(&action.get("seconds")),
        _ => {}
    }
}
