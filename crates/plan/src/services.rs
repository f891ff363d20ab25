//! Services and EndpointSlices in, the kernel's load-balancing table out.
//!
//! Knows Kubernetes' rules about who is behind a Service port for whom (readiness, traffic policies, affinity, ports by
//! name). Does not know nftables. One departure from upstream: a terminating endpoint never gets new connections, also
//! when it is the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{Reason, Target};

/// The label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Affinity lasts so long if the Service does not say otherwise.
const AFFINITY_SECONDS: u32 = 10_800;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The API's spelling; nothing said means TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP" | "") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// IANA's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// As it stands in SRV names.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One port of one Service: where it is reached, and who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    /// Cluster addresses.
    pub inside: BTreeSet<SocketAddrV4>,
    /// External addresses.
    pub outside: BTreeSet<SocketAddrV4>,
    /// A port of every address of the node.
    pub node_port: Option<u16>,
    pub endpoints: BTreeSet<SocketAddrV4>,
    /// Who answers traffic that comes from outside by `outside` and `node_port`, where that differs
    /// (`externalTrafficPolicy: Local`). Nobody means that the packet is dropped.
    pub outside_endpoints: Option<BTreeSet<SocketAddrV4>>,
    /// A client keeps its endpoint for so long after its last connection.
    pub affinity_seconds: Option<u32>,
}

/// By `namespace/service:port/protocol`; host ports of pods by `namespace/pod:hostPort/protocol`.
pub type Table = BTreeMap<String, Port>;

/// The slices of each Service.
pub type SlicesOf<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

/// Groups slices by namespace and Service.
pub fn by_service<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> SlicesOf<'a> {
    let mut map = SlicesOf::new();
    for slice in slices {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL));
        if let (Some(namespace), Some(service)) = (slice.metadata.namespace.as_deref(), service) {
            map.entry((namespace, service.as_str())).or_default().push(slice);
        }
    }
    map
}

/// The table of the node called `node`. `pods` are those of this node, for their host ports.
pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    pods: impl IntoIterator<Item = &'a Pod>,
    node: &str,
) -> (Table, Vec<Reason>) {
    let slices = by_service(slices);
    let mut builder = Builder::default();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let none = Vec::new();
        let slices = slices.get(&(namespace, name)).unwrap_or(&none);
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
            let label = port.name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| port.port.to_string());
            let about = Target::of(service);
            let planned = service_port(service, spec, port, protocol, slices, node);
            builder.add(format!("{namespace}/{name}:{label}/{}", protocol.lower()), planned, about);
        }
    }
    for pod in pods {
        host_ports(pod, &mut builder);
    }
    (builder.table, builder.reasons)
}

/// Keeps every address and port to one owner, the first by name.
#[derive(Default)]
struct Builder {
    table: Table,
    reasons: Vec<Reason>,
    taken: BTreeMap<(Protocol, Option<Ipv4Addr>, u16), String>,
}

impl Builder {
    fn add(&mut self, key: String, mut port: Port, about: Target) {
        let protocol = port.protocol;
        port.inside.retain(|at| self.claim(protocol, Some(*at.ip()), at.port(), &key, &about));
        port.outside.retain(|at| self.claim(protocol, Some(*at.ip()), at.port(), &key, &about));
        port.node_port = port.node_port.filter(|n| self.claim(protocol, None, *n, &key, &about));
        if !port.inside.is_empty() || !port.outside.is_empty() || port.node_port.is_some() {
            self.table.insert(key, port);
        }
    }

    fn claim(&mut self, protocol: Protocol, address: Option<Ipv4Addr>, number: u16, key: &str, about: &Target) -> bool {
        let owner = self.taken.entry((protocol, address, number)).or_insert_with(|| key.to_string());
        if owner == key {
            return true;
        }
        let at = address.map_or("node port".to_string(), |a| a.to_string());
        let text = format!("{at} {number}/{} is already used by {owner}", protocol.lower());
        self.reasons.push(Reason::warning("PortAlreadyTaken", text).about(about.clone()));
        false
    }
}

fn service_port(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    protocol: Protocol,
    slices: &[&EndpointSlice],
    node: &str,
) -> Port {
    let number = port.port as u16;
    let at = |addresses: &mut dyn Iterator<Item = &String>| -> BTreeSet<SocketAddrV4> {
        addresses.filter_map(|a| a.parse().ok()).map(|a: Ipv4Addr| SocketAddrV4::new(a, number)).collect()
    };
    let inside = match spec.cluster_ips.as_deref() {
        Some(addresses) if !addresses.is_empty() => at(&mut addresses.iter()),
        _ => at(&mut spec.cluster_ip.iter()),
    };
    let mut outside = at(&mut spec.external_ips.iter().flatten());
    outside.extend(at(&mut balancer_addresses(service).iter()));
    let all = |here: bool| -> BTreeSet<SocketAddrV4> {
        ready(slices, port, protocol).filter(|(e, _)| !here || e.node_name.as_deref() == Some(node)).map(|(_, at)| at).collect()
    };
    let local_outside = spec.external_traffic_policy.as_deref() == Some("Local");
    let has_outside = !outside.is_empty() || port.node_port.is_some_and(|n| n > 0);
    Port {
        protocol,
        inside,
        outside,
        node_port: port.node_port.filter(|n| *n > 0).map(|n| n as u16),
        endpoints: all(spec.internal_traffic_policy.as_deref() == Some("Local")),
        outside_endpoints: (has_outside && (local_outside || spec.internal_traffic_policy.as_deref() == Some("Local")))
            .then(|| all(local_outside)),
        affinity_seconds: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS)
        }),
    }
}

/// What a load balancer announced, unless it is a proxy that connects to the node itself.
fn balancer_addresses(service: &Service) -> Vec<String> {
    let ingress = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.clone()).collect()
}

/// The endpoints of a Service's port that take new connections, each with its address.
pub fn ready<'a>(
    slices: &'a [&'a EndpointSlice],
    port: &'a ServicePort,
    protocol: Protocol,
) -> impl Iterator<Item = (&'a Endpoint, SocketAddrV4)> {
    let name = port.name.as_deref().unwrap_or_default();
    slices.iter().filter(|s| s.address_type == "IPv4").flat_map(move |slice| {
        let matching = slice
            .ports
            .iter()
            .flatten()
            .filter(move |p| p.name.as_deref().unwrap_or_default() == name && Protocol::parse(p.protocol.as_deref()) == Some(protocol));
        matching.filter_map(|p| p.port).flat_map(move |number| {
            slice.endpoints.iter().filter(|e| is_ready(e)).flat_map(move |e| {
                let addresses = e.addresses.iter().filter_map(|a| a.parse().ok());
                addresses.map(move |a: Ipv4Addr| (e, SocketAddrV4::new(a, number as u16)))
            })
        })
    })
}

/// Unknown counts as ready (`discovery.k8s.io/v1 EndpointConditions`).
pub fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn host_ports(pod: &Pod, builder: &mut Builder) {
    let (Some(spec), Some(status)) = (pod.spec.as_ref(), pod.status.as_ref()) else { return };
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(address) = status.pod_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else { return };
    if ended || spec.host_network == Some(true) {
        return;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    for port in spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()) {
        let Some(number) = port.host_port.filter(|n| *n > 0).map(|n| n as u16) else { continue };
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        let at: Option<Ipv4Addr> = port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|a: &Ipv4Addr| !a.is_unspecified());
        let planned = Port {
            protocol,
            inside: BTreeSet::new(),
            outside: at.map(|a| SocketAddrV4::new(a, number)).into_iter().collect(),
            node_port: at.is_none().then_some(number),
            endpoints: BTreeSet::from([SocketAddrV4::new(address, port.container_port as u16)]),
            outside_endpoints: None,
            affinity_seconds: None,
        };
        let about = Target::of(pod);
        builder.add(format!("{namespace}/{name}:{number}/{}", protocol.lower()), planned, about);
    }
}

/// The number of a Service's port that is named by number or by name, as Ingress backends do.
pub fn port_by(service: &Service, wanted: &IntOrString) -> Option<ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let found = ports.iter().find(|p| match wanted {
        IntOrString::Int(number) => p.port == *number,
        IntOrString::String(name) => p.name.as_deref() == Some(name),
    });
    found.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn table(services: Value, slices: Value, pods: Value) -> (Table, Vec<Reason>) {
        let services: Vec<Service> = serde_json::from_value(services).unwrap();
        let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
        let pods: Vec<Pod> = serde_json::from_value(pods).unwrap();
        plan(&services, &slices, &pods, "n1")
    }

    fn service(spec: Value) -> Value {
        let mut all =
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({"metadata": {"name": "web", "namespace": "d"}, "spec": all})
    }

    /// `(address, node, ready)`
    fn slice(endpoints: &[(&str, &str, Value)]) -> Value {
        let endpoints: Vec<Value> =
            endpoints.iter().map(|(a, node, ready)| json!({"addresses": [a], "nodeName": node, "conditions": {"ready": ready}})).collect();
        json!({"metadata": {"name": "web-1", "namespace": "d", "labels": {SERVICE_NAME_LABEL: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "other", "port": 9090}], "endpoints": endpoints})
    }

    fn ends(set: &BTreeSet<SocketAddrV4>) -> Vec<String> {
        set.iter().map(|a| a.to_string()).collect()
    }

    #[test]
    fn only_ready_endpoints_of_the_port_by_its_name_are_behind_it() {
        let slices = [slice(&[("10.42.0.5", "n1", json!(true)), ("10.42.0.6", "n1", json!(false)), ("10.42.0.7", "n2", Value::Null)])];
        let (t, reasons) = table(json!([service(json!({}))]), json!(slices), json!([]));
        let port = &t["d/web:http/tcp"];
        assert_eq!(ends(&port.endpoints), ["10.42.0.5:8080", "10.42.0.7:8080"]);
        assert_eq!(ends(&port.inside), ["10.43.0.7:80"]);
        assert!(port.outside_endpoints.is_none() && port.affinity_seconds.is_none() && reasons.is_empty());
    }

    #[test]
    fn traffic_policies_keep_traffic_on_the_node_they_name() {
        let slices = || json!([slice(&[("10.42.0.5", "n1", json!(true)), ("10.42.1.5", "n2", json!(true))])]);
        let with = |spec: Value| table(json!([service(spec)]), slices(), json!([])).0.remove("d/web:http/tcp").unwrap();
        let node_port = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let external = with(json!({"externalTrafficPolicy": "Local", "ports": node_port}));
        assert_eq!(ends(&external.endpoints).len(), 2);
        assert_eq!(ends(external.outside_endpoints.as_ref().unwrap()), ["10.42.0.5:8080"]);
        let internal = with(json!({"internalTrafficPolicy": "Local", "ports": node_port}));
        assert_eq!(ends(&internal.endpoints), ["10.42.0.5:8080"]);
        assert_eq!(ends(internal.outside_endpoints.as_ref().unwrap()).len(), 2);
        let inside_only = with(json!({"internalTrafficPolicy": "Local"}));
        assert!(inside_only.outside_endpoints.is_none());
    }

    #[test]
    fn every_way_in_is_listed_and_headless_services_have_none() {
        let spec = json!({"externalIPs": ["198.51.100.1", "2001:db8::1"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
        let mut s = service(spec);
        s["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "x"}]}});
        let (t, _) = table(json!([s]), json!([]), json!([]));
        let port = &t["d/web:http/tcp"];
        assert_eq!(ends(&port.outside), ["198.51.100.1:80", "198.51.100.2:80"]);
        assert_eq!((port.node_port, port.affinity_seconds), (Some(30080), Some(60)));
        assert_eq!(t["d/web:dns/udp"].protocol, Protocol::Udp);
        for none in [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"type": "ExternalName", "externalName": "x"})] {
            assert!(table(json!([service(none)]), json!([]), json!([])).0.is_empty());
        }
    }

    #[test]
    fn host_ports_lead_to_their_pod_while_it_runs() {
        let pod = |name: &str, phase: &str, spec: Value| json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec, "status": {"phase": phase, "podIP": "10.42.0.9"}});
        let ports = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"}, {"containerPort": 90}]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}]});
        let (t, _) = table(json!([]), json!([]), json!([pod("p", "Running", spec.clone())]));
        assert_eq!(t.keys().collect::<Vec<_>>(), ["d/p:53/udp", "d/p:8080/tcp"]);
        assert_eq!((t["d/p:8080/tcp"].node_port, ends(&t["d/p:8080/tcp"].endpoints)), (Some(8080), vec!["10.42.0.9:80".to_string()]));
        assert_eq!(ends(&t["d/p:53/udp"].outside), ["127.0.0.1:53"]);
        assert!(table(json!([]), json!([]), json!([pod("p", "Succeeded", spec.clone())])).0.is_empty());
        let mut host = spec;
        host["hostNetwork"] = json!(true);
        assert!(table(json!([]), json!([]), json!([pod("p", "Running", host)])).0.is_empty());
    }

    #[test]
    fn what_two_want_the_first_gets_and_the_second_is_told() {
        let mut other = service(json!({"clusterIP": "10.43.0.8", "clusterIPs": ["10.43.0.8"], "externalIPs": ["198.51.100.1"]}));
        other["metadata"]["name"] = json!("xeb");
        let (t, reasons) = table(json!([service(json!({"externalIPs": ["198.51.100.1"]})), other]), json!([]), json!([]));
        assert_eq!(ends(&t["d/web:http/tcp"].outside), ["198.51.100.1:80"]);
        assert!(t["d/xeb:http/tcp"].outside.is_empty());
        assert_eq!(reasons[0].message, "198.51.100.1 80/tcp is already used by d/web:http/tcp");
        assert_eq!(reasons[0].about.as_ref().unwrap().name, "xeb");
    }
}
