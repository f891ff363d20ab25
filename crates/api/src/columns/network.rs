//! Services, endpoints, ingresses.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, NONE, age, balancer, count, labels, list, name, or, shortened, text, wide};
use crate::resource::Column;

pub const SERVICE: &[Column] = &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")];

pub fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    vec![
        name(o),
        spec["type"].clone(),
        json!(or(&spec["clusterIPs"][0], or(&spec["clusterIP"], NONE))),
        json!(external(spec, &o["status"])),
        json!(ports(spec)),
        age(o, now),
        json!(labels(&spec["selector"])),
    ]
}

fn external(spec: &Value, status: &Value) -> String {
    let given: Vec<&str> = list(&spec["externalIPs"]).iter().filter_map(Value::as_str).collect();
    let given = given.join(",");
    match or(&spec["type"], "") {
        "ClusterIP" | "NodePort" => or(&json!(given), NONE).to_string(),
        "LoadBalancer" => match (balancer(status), given) {
            (b, g) if b.is_empty() && g.is_empty() => "<pending>".into(),
            (b, g) if b.is_empty() || g.is_empty() => b + &g,
            (b, g) => format!("{b},{g}"),
        },
        "ExternalName" => or(&spec["externalName"], "").into(),
        _ => super::UNKNOWN.into(),
    }
}

/// `80:30080/TCP,443/TCP`
fn ports(spec: &Value) -> String {
    let one = |p: &Value| match count(&p["nodePort"]) {
        0 => format!("{}/{}", count(&p["port"]), or(&p["protocol"], "")),
        node => format!("{}:{node}/{}", count(&p["port"]), or(&p["protocol"], "")),
    };
    let all: Vec<String> = list(&spec["ports"]).iter().map(one).collect();
    if all.is_empty() { NONE.into() } else { all.join(",") }
}

pub const ENDPOINTS: &[Column] = &[NAME, text("Endpoints"), AGE];

pub fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&o["subsets"]) {
        let ips = || list(&subset["addresses"]).iter().filter_map(|a| a["ip"].as_str());
        let ports = list(&subset["ports"]);
        if ports.is_empty() {
            all.extend(ips().map(String::from));
        }
        for port in ports {
            all.extend(ips().map(|ip| host_port(ip, count(&port["port"]))));
        }
    }
    vec![name(o), json!(shortened(&all, NONE)), age(o, now)]
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub const ENDPOINT_SLICE: &[Column] = &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE];

pub fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let number = |p: &Value| p["port"].as_i64().map(|n| n.to_string()).unwrap_or_else(|| or(&p["name"], "*").to_string());
    let ports: Vec<String> = list(&o["ports"]).iter().map(number).collect();
    let all = list(&o["endpoints"]).iter().flat_map(|e| list(&e["addresses"])).filter_map(Value::as_str).map(String::from);
    let all: Vec<String> = all.collect();
    vec![name(o), o["addressType"].clone(), json!(shortened(&ports, "<unset>")), json!(shortened(&all, "<unset>")), age(o, now)]
}

pub const INGRESS: &[Column] = &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE];

pub fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let hosts: Vec<String> =
        list(&spec["rules"]).iter().filter_map(|r| r["host"].as_str()).filter(|h| !h.is_empty()).map(String::from).collect();
    let ports = if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
    vec![
        name(o),
        json!(or(&spec["ingressClassName"], NONE)),
        json!(shortened(&hosts, "*")),
        json!(balancer(&o["status"])),
        json!(ports),
        age(o, now),
    ]
}

pub const INGRESS_CLASS: &[Column] = &[NAME, text("Controller"), text("Parameters"), AGE];

pub fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let given = &o["spec"]["parameters"];
    let parameters = match (given.is_object(), or(&given["apiGroup"], "")) {
        (false, _) => NONE.to_string(),
        (true, "") => format!("{}/{}", or(&given["kind"], ""), or(&given["name"], "")),
        (true, group) => format!("{}.{group}/{}", or(&given["kind"], ""), or(&given["name"], "")),
    };
    vec![name(o), json!(or(&o["spec"]["controller"], "")), json!(parameters), age(o, now)]
}
