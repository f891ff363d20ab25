//! Services, endpoints, ingress classes.

use serde_json::Value;

use super::{absent, each, ensure, set, within};

const AFFINITY_SECONDS: i64 = 10_800;

pub fn service(object: &mut Value) {
    let Some(spec) = ensure(object, "spec") else { return };
    set(spec, "sessionAffinity", "None");
    set(spec, "type", "ClusterIP");
    affinity(spec);
    for port in each(spec, "ports") {
        set(port, "protocol", "TCP");
        let number = port["port"].clone();
        if (absent(port, "targetPort") || port["targetPort"] == 0 || port["targetPort"] == "") && !number.is_null() {
            port["targetPort"] = number;
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_string();
    let outside = kind == "NodePort" || kind == "LoadBalancer";
    let external_ips = spec["externalIPs"].as_array().is_some_and(|l| !l.is_empty());
    if outside || (kind == "ClusterIP" && external_ips) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if outside || kind == "ClusterIP" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    if let Some(status) = ensure(object, "status") {
        ensure(status, "loadBalancer");
    }
}

fn affinity(spec: &mut Value) {
    if spec["sessionAffinity"] == "None" {
        if let Some(map) = spec.as_object_mut() {
            map.remove("sessionAffinityConfig");
        }
    } else if spec["sessionAffinity"] == "ClientIP"
        && let Some(config) = ensure(spec, "sessionAffinityConfig")
        && let Some(client) = ensure(config, "clientIP")
    {
        set(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
}

pub fn endpoints(object: &mut Value) {
    for subset in each(object, "subsets") {
        each(subset, "ports").for_each(|p| set(p, "protocol", "TCP"));
    }
}

pub fn endpoint_slice(object: &mut Value) {
    for port in each(object, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

pub fn ingress_class(object: &mut Value) {
    if let Some(parameters) = within(object, "spec").and_then(|s| within(s, "parameters")) {
        set(parameters, "scope", "Cluster");
    }
}
