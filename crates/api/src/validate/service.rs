//! Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::endpoints::PROTOCOLS;
use super::{At, Out, meta};
use crate::{Cause, names};

const AFFINITY_SECONDS_MAX: i64 = 86_400;
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub fn service(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1035_label, &mut out);
    let spec = At::root(new).get("spec");
    let kind = spec.get("type").text();
    out.some_of(&spec.get("type"), &TYPES);
    addresses(&spec, kind, &mut out);
    ports(&spec, kind, &mut out);
    out.labels(&spec.get("selector"));
    affinity(&spec, &mut out);
    policies(&spec, kind, &mut out);
    if let Some(old) = old {
        fixed_addresses(&spec, &old["spec"], kind, &mut out);
    }
    out.0
}

fn headless(spec: &At) -> bool {
    spec.v["clusterIP"] == "None" || spec.v["clusterIPs"][0] == "None"
}

fn addresses(spec: &At, kind: &str, out: &mut Out) {
    let (one, all) = (spec.get("clusterIP"), spec.get("clusterIPs"));
    let first = At { v: one.v, path: "spec.clusterIPs[0]".into() };
    match kind {
        "ExternalName" => {
            if all.given() || (one.given() && !headless(spec)) {
                out.forbidden(&all, "may not be set for ExternalName services");
            }
            let name = spec.get("externalName");
            if name.given() {
                out.each(&name, names::dns1123_subdomain(name.text().trim_end_matches('.')));
            } else {
                out.required(&name, "");
            }
        }
        "LoadBalancer" | "NodePort" if headless(spec) => {
            out.invalid_value(&first, "None", &format!("may not be set to 'None' for {kind} services"));
        }
        _ => {}
    }
    if one.given() && one.text() != "None" && !all.given() {
        out.each(&first, names::ip(one.text()));
    }
    for ip in all.items().iter().filter(|ip| ip.text() != "None") {
        out.each(ip, names::ip(ip.text()));
    }
    if all.given() && one.given() && all.v[0] != *one.v {
        out.invalid(&first, "must match `clusterIP`");
    }
    for ip in spec.get("externalIPs").items() {
        out.address(&ip);
    }
    let families = spec.get("ipFamilies");
    families.items().iter().for_each(|f| out.one_of(f, &["IPv4", "IPv6"]));
    out.one_of(&spec.get("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"]);
}

fn ports(spec: &At, kind: &str, out: &mut Out) {
    let ports = spec.get("ports");
    if !ports.given() && !headless(spec) && kind != "ExternalName" {
        out.required(&ports, "");
    }
    let many = ports.items().len() > 1;
    let (mut names_seen, mut seen, mut nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for port in ports.items() {
        let [name, number, protocol, node] = ["name", "port", "protocol", "nodePort"].map(|f| port.get(f));
        if many || name.given() {
            out.named(&name, names::dns1123_label);
        }
        if name.given() && !names_seen.insert(name.text()) {
            out.duplicate(&name);
        }
        out.each(&number, names::port_number(number.int().unwrap_or(0)));
        out.some_of(&protocol, &PROTOCOLS);
        out.port_or_name(&port.get("targetPort"));
        out.matches(&port.get("appProtocol"), names::qualified);
        if !seen.insert((number.int(), protocol.text())) {
            let pair = json!({"port": number.v, "protocol": protocol.v});
            out.duplicate(&At { v: &pair, path: port.path.clone() });
        }
        match node.int().unwrap_or(0) {
            0 => {}
            _ if kind == "ClusterIP" || kind == "ExternalName" => {
                out.forbidden(&node, &format!("may not be used when `type` is '{kind}'"));
            }
            n if !nodes.insert((n, protocol.text())) => out.duplicate(&node),
            _ => out.within(&node, 1, 65535),
        }
    }
}

fn affinity(spec: &At, out: &mut Out) {
    let kind = spec.get("sessionAffinity");
    out.some_of(&kind, &["ClientIP", "None"]);
    let config = spec.get("sessionAffinityConfig");
    let seconds = config.get("clientIP.timeoutSeconds");
    match kind.text() {
        "ClientIP" if !seconds.int().is_some_and(|s| s > 0 && s <= AFFINITY_SECONDS_MAX) => {
            out.invalid(&seconds, &format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}"));
        }
        "None" if config.is_set() => out.forbidden(&config, "must not be set when session affinity is None"),
        _ => {}
    }
}

fn policies(spec: &At, kind: &str, out: &mut Out) {
    let external = spec.get("externalTrafficPolicy");
    let reachable = matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && spec.get("externalIPs").given());
    if external.given() && !reachable {
        out.invalid(&external, "may only be set for externally-accessible services");
    } else {
        out.one_of(&external, &["Cluster", "Local"]);
    }
    out.one_of(&spec.get("internalTrafficPolicy"), &["Cluster", "Local"]);
    out.one_of(&spec.get("trafficDistribution"), &["PreferClose"]);
    if kind != "LoadBalancer" {
        for (field, why) in [
            ("allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'"),
            ("loadBalancerClass", "may only be used when `type` is 'LoadBalancer'"),
            ("loadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'"),
        ] {
            if spec.get(field).given() {
                out.forbidden(&spec.get(field), why);
            }
        }
    }
}

/// The address stays while the Service has one.
fn fixed_addresses(spec: &At, old: &Value, kind: &str, out: &mut Out) {
    if kind == "ExternalName" || old["type"] == "ExternalName" || old["clusterIP"].as_str().is_none_or(str::is_empty) {
        return;
    }
    if spec.v["clusterIP"] != old["clusterIP"] {
        let value = if spec.get("clusterIPs").given() { spec.v["clusterIPs"].clone() } else { json!([spec.v["clusterIP"]]) };
        out.invalid_value(&At { v: spec.v, path: "spec.clusterIPs[0]".into() }, value, "may not change once set");
    }
}
