//! Endpoints and EndpointSlices: which addresses answer for a Service.
//!
//! Knows Services, pods, and the slices there are. Does not know who reads them (the kernel's tables, DNS, the router).
//! A Service without selector is its user's affair: their Endpoints are mirrored into slices, their slices left alone.
//!
//! Source: upstream's endpoint, endpointslice and endpointslicemirroring controllers.

mod legacy;
mod slices;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Endpoints, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{Cx, Plan, Reason, objects, selector};

/// Label of a slice: the Service it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a slice: who keeps it. What others keep is not touched.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are ours, and its value.
pub const ENDPOINTS_MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
/// Label of what belongs to a Service without address of its own.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

pub struct Snapshot<'a> {
    pub service: &'a Service,
    /// All pods of the namespace.
    pub pods: &'a [&'a Pod],
    /// The slices labelled with this Service's name.
    pub slices: &'a [&'a EndpointSlice],
    /// The Endpoints of the Service's name.
    pub endpoints: Option<&'a Endpoints>,
    /// Zone labels of nodes.
    pub zones: &'a BTreeMap<String, String>,
}

/// Addresses that share one list of ports, which is what a slice holds.
type Group = (Vec<Port>, Vec<Endpoint>);

/// Comparable form of an endpoint port.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: String,
    /// `None` never comes out of a Service; a user's slice may have it.
    port: Option<i32>,
    app_protocol: Option<String>,
}

impl From<&EndpointPort> for Port {
    fn from(p: &EndpointPort) -> Self {
        Self {
            name: p.name.clone().unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: p.port,
            app_protocol: p.app_protocol.clone(),
        }
    }
}

impl From<&Port> for EndpointPort {
    fn from(p: &Port) -> Self {
        Self { name: Some(p.name.clone()), protocol: Some(p.protocol.clone()), port: p.port, app_protocol: p.app_protocol.clone() }
    }
}

/// Endpoints and slices as the Service and its pods want them.
pub fn plan(s: &Snapshot, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    let Some(spec) = &s.service.spec else { return (plan, Vec::new()) };
    if objects::deleting(s.service) || spec.type_.as_deref() == Some("ExternalName") {
        return (plan, Vec::new());
    }
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        let groups = s.endpoints.map(legacy::mirrored).unwrap_or_default();
        slices::plan(s, MIRROR, "IPv4", groups, cx, &mut plan);
        return (plan, Vec::new());
    }
    let pods: Vec<&Pod> = s.pods.iter().copied().filter(|p| selected(spec, p)).collect();
    let families = spec.ip_families.clone().filter(|f| !f.is_empty()).unwrap_or_else(|| vec!["IPv4".into()]);
    for family in &families {
        slices::plan(s, MANAGER, family, groups(s, spec, &pods, family), cx, &mut plan);
    }
    legacy::plan(s, spec, &pods, &families[0], &mut plan);
    (plan, Vec::new())
}

/// Selected and worth an address: it has not ended. One that is terminating still has its place in slices.
fn selected(spec: &ServiceSpec, pod: &Pod) -> bool {
    !objects::terminated(pod) && spec.selector.as_ref().is_some_and(|s| selector::matches_pairs(s, pod.metadata.labels.as_ref()))
}

fn groups(s: &Snapshot, spec: &ServiceSpec, pods: &[&Pod], family: &str) -> Vec<Group> {
    let mut by_ports: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        if let Some(ip) = address(pod, family) {
            by_ports.entry(ports(spec, pod)).or_default().push(endpoint(s, spec, pod, ip));
        }
    }
    by_ports.into_iter().collect()
}

fn endpoint(s: &Snapshot, spec: &ServiceSpec, pod: &Pod, ip: String) -> Endpoint {
    let (serving, terminating) = (objects::ready(pod), objects::deleting(pod));
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let node = objects::node_of(pod);
    Endpoint {
        addresses: vec![ip],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        hostname: hostname(s.service, pod),
        node_name: (!node.is_empty()).then(|| node.into()),
        target_ref: Some(reference(pod)),
        zone: s.zones.get(node).cloned(),
        ..Endpoint::default()
    }
}

/// The name by which DNS knows the pod under a headless Service: only with a matching subdomain.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let named = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    spec.hostname.clone().filter(|h| named && !h.is_empty())
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The pod's first address of the family.
fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|p| &p.ip).chain(status.pod_ip.as_ref());
    all.into_iter().find(|ip| family_of(ip) == Some(family)).cloned()
}

fn family_of(ip: &str) -> Option<&'static str> {
    ip.parse().ok().map(|ip: IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
}

/// What the Service's ports are on this pod. A named target that the pod has not is left out.
fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<Port> {
    let mut out: Vec<Port> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: Some(target_port(p, pod)?),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect();
    out.sort();
    out
}

/// The number behind `targetPort` on a pod: containers and sidecars are searched for a named one.
pub fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let all = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
            all.into_iter()
                .find(|c| c.name.as_ref() == Some(name) && protocol(&c.protocol) == protocol(&port.protocol))
                .map(|c| c.container_port)
        }
    }
}

#[cfg(test)]
mod tests;
