//! Services and EndpointSlices in, the cluster's DNS zone out.
//!
//! Follows the Kubernetes DNS specification 1.1.0 (`A`, `SRV`, `PTR`, `CNAME`). Pod records (`10-42-0-5.ns.pod`) need no
//! data: the server computes them. Does not know the wire format: that is the DNS server's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::{Deserialize, Serialize};

use crate::services::{self, Protocol};

/// A snapshot of all names of the cluster. Names are lower case, without the domain and without a closing dot:
/// `web.default.svc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// `cluster.local`
    pub domain: String,
    /// Of the objects it was made from; the zone's serial number.
    pub revision: u64,
    pub names: BTreeMap<String, Records>,
    /// What an address is called.
    pub pointers: BTreeMap<Ipv4Addr, BTreeSet<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Records {
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<Ipv4Addr>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<Srv>,
    /// The whole name of what an ExternalName Service stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Srv {
    pub port: u16,
    /// A name of this zone, without the domain.
    pub target: String,
}

pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    domain: &str,
    revision: u64,
) -> Zone {
    let mut zone = Zone { domain: domain.to_ascii_lowercase(), revision, ..Zone::default() };
    let slices = services::by_service(slices);
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        let base = format!("{name}.{namespace}.svc").to_ascii_lowercase();
        if spec.type_.as_deref() == Some("ExternalName") {
            let alias = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
            zone.names.entry(base).or_default().alias = Some(alias).filter(|a| !a.is_empty());
            continue;
        }
        let none = Vec::new();
        let slices = slices.get(&(namespace, name)).unwrap_or(&none);
        if spec.cluster_ip.as_deref() == Some("None") {
            headless(&mut zone, &base, spec, slices);
        } else {
            balanced(&mut zone, &base, spec);
        }
    }
    zone
}

fn balanced(zone: &mut Zone, base: &str, spec: &ServiceSpec) {
    let all = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let addresses: BTreeSet<Ipv4Addr> = all.filter_map(|a| a.parse().ok()).collect();
    for address in &addresses {
        zone.pointers.entry(*address).or_default().insert(base.to_string());
    }
    zone.names.entry(base.to_string()).or_default().addresses = addresses;
    for port in spec.ports.iter().flatten() {
        let srv = Srv { port: port.port as u16, target: base.to_string() };
        add_srv(zone, base, port.name.as_deref(), port.protocol.as_deref(), srv);
    }
}

fn headless(zone: &mut Zone, base: &str, spec: &ServiceSpec, slices: &[&EndpointSlice]) {
    zone.names.entry(base.to_string()).or_default();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        for endpoint in slice.endpoints.iter().filter(|e| services::is_ready(e)) {
            for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let own = format!("{}.{base}", label(endpoint, address));
                zone.names.entry(base.to_string()).or_default().addresses.insert(address);
                zone.names.entry(own.clone()).or_default().addresses.insert(address);
                zone.pointers.entry(address).or_default().insert(own);
            }
        }
    }
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        let behind: Vec<Srv> = services::ready(slices, port, protocol)
            .map(|(endpoint, at)| Srv { port: at.port(), target: format!("{}.{base}", label(endpoint, *at.ip())) })
            .collect();
        for srv in behind {
            add_srv(zone, base, port.name.as_deref(), port.protocol.as_deref(), srv);
        }
    }
}

/// The endpoint's hostname, else its address with dashes.
fn label(endpoint: &Endpoint, address: Ipv4Addr) -> String {
    match endpoint.hostname.as_deref() {
        Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
        _ => address.to_string().replace('.', "-"),
    }
}

/// Under `_port._protocol.service` for a port with a name, and under the Service's own name for every port.
fn add_srv(zone: &mut Zone, base: &str, port: Option<&str>, protocol: Option<&str>, srv: Srv) {
    let Some(protocol) = Protocol::parse(protocol) else { return };
    if let Some(port) = port.filter(|p| !p.is_empty()) {
        let name = format!("_{}._{}.{base}", port.to_ascii_lowercase(), protocol.lower());
        zone.names.entry(name).or_default().services.insert(srv.clone());
    }
    zone.names.entry(base.to_string()).or_default().services.insert(srv);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone(services: serde_json::Value, slices: serde_json::Value) -> Zone {
        let services: Vec<Service> = serde_json::from_value(services).unwrap();
        let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
        plan(&services, &slices, "cluster.local", 7)
    }

    #[test]
    fn a_service_has_an_address_a_pointer_and_named_ports() {
        let z = zone(
            json!([{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}]),
            json!([]),
        );
        let address: Ipv4Addr = "10.43.0.7".parse().unwrap();
        assert_eq!(z.names["web.shop.svc"].addresses, [address].into());
        assert_eq!(z.names["_http._tcp.web.shop.svc"].services, [Srv { port: 80, target: "web.shop.svc".into() }].into());
        assert_eq!(z.names["_dns._udp.web.shop.svc"].services.len(), 1);
        assert_eq!(z.pointers[&address], ["web.shop.svc".to_string()].into());
    }

    #[test]
    fn a_headless_service_names_its_ready_endpoints() {
        let z = zone(
            json!([{"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}]}}]),
            json!([{"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
                "addressType": "IPv4", "ports": [{"name": "pg", "port": 15432, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                    {"addresses": ["10.42.0.6"], "conditions": {"ready": true}},
                    {"addresses": ["10.42.0.7"], "conditions": {"ready": false}}]}]),
        );
        assert_eq!(z.names["db.shop.svc"].addresses.len(), 2);
        assert_eq!(z.names["db-0.db.shop.svc"].addresses.len(), 1);
        let targets: Vec<_> = z.names["_pg._tcp.db.shop.svc"].services.iter().map(|s| (s.port, s.target.as_str())).collect();
        assert_eq!(targets, [(15432, "10-42-0-6.db.shop.svc"), (15432, "db-0.db.shop.svc")]);
        assert!(!z.names.contains_key("10-42-0-7.db.shop.svc"));
    }

    #[test]
    fn an_external_name_is_an_alias_and_an_empty_headless_service_exists() {
        let z = zone(
            json!([{"metadata": {"name": "ext", "namespace": "a"}, "spec": {"type": "ExternalName", "externalName": "Example.ORG."}},
                   {"metadata": {"name": "none", "namespace": "a"}, "spec": {"clusterIP": "None"}}]),
            json!([]),
        );
        assert_eq!(z.names["ext.a.svc"].alias.as_deref(), Some("example.org"));
        assert_eq!(z.names["none.a.svc"], Records::default());
    }
}
