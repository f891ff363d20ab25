//! The older Endpoints object of a Service, for the clients that read it, and the way back for those that write it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{ENDPOINTS_MANAGED_BY, Group, HEADLESS, Port, Snapshot, address, family_of, hostname, ports, reference, slices};
use crate::limits::ENDPOINTS_MAX;
use crate::{Action, Plan, objects};

/// Annotation of Endpoints that hold not all addresses.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Label of Endpoints that shall have no mirror.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

pub(super) fn plan(s: &Snapshot, spec: &ServiceSpec, pods: &[&Pod], family: &str, plan: &mut Plan) {
    let lenient = spec.publish_not_ready_addresses == Some(true);
    let mut by_ports: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut left = ENDPOINTS_MAX;
    for pod in pods.iter().filter(|p| lenient || !objects::deleting(**p)) {
        let Some(ip) = address(pod, family) else { continue };
        let on_pod = ports(spec, pod);
        if on_pod.is_empty() && !slices::headless(s.service) {
            continue;
        }
        let Some(less) = left.checked_sub(1) else { break };
        left = less;
        let node = objects::node_of(pod);
        let at = EndpointAddress {
            hostname: hostname(s.service, pod),
            ip,
            node_name: (!node.is_empty()).then(|| node.into()),
            target_ref: Some(reference(pod)),
        };
        let (ready, not_ready) = by_ports.entry(on_pod).or_default();
        if lenient || objects::ready(pod) { ready.push(at) } else { not_ready.push(at) }
    }
    let subsets: Vec<EndpointSubset> = by_ports.into_iter().map(|(ports, (ready, not_ready))| subset(ports, ready, not_ready)).collect();
    write(s, subsets, left == 0, plan);
}

fn subset(ports: Vec<Port>, ready: Vec<EndpointAddress>, not_ready: Vec<EndpointAddress>) -> EndpointSubset {
    let sorted = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!list.is_empty()).then_some(list)
    };
    let port = |p: &Port| EndpointPort {
        name: (!p.name.is_empty()).then(|| p.name.clone()),
        port: p.port.unwrap_or_default(),
        protocol: Some(p.protocol.clone()),
        app_protocol: p.app_protocol.clone(),
    };
    EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(not_ready),
        ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
    }
}

fn write(s: &Snapshot, subsets: Vec<EndpointSubset>, truncated: bool, plan: &mut Plan) {
    let mut labels = s.service.metadata.labels.clone().unwrap_or_default();
    labels.insert(ENDPOINTS_MANAGED_BY.0.into(), ENDPOINTS_MANAGED_BY.1.into());
    if slices::headless(s.service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut wanted = s.endpoints.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: s.service.metadata.name.clone(),
            namespace: s.service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    if truncated {
        wanted.metadata.annotations.get_or_insert_default().insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(notes) = &mut wanted.metadata.annotations {
        notes.remove(OVER_CAPACITY);
    }
    plan.wave(match s.endpoints {
        Some(seen) => Action::patch(seen, &wanted, None),
        None => Some(Action::create(&wanted)),
    });
}

/// A user's Endpoints as groups for slices.
pub(super) fn mirrored(endpoints: &Endpoints) -> Vec<Group> {
    let labels = endpoints.metadata.labels.as_ref();
    if labels.is_some_and(|l| l.get(SKIP_MIRROR).map(String::as_str) == Some("true")) || objects::deleting(endpoints) {
        return Vec::new();
    }
    let one = |a: &EndpointAddress, ready: bool| Endpoint {
        addresses: vec![a.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: a.hostname.clone(),
        node_name: a.node_name.clone(),
        target_ref: a.target_ref.clone(),
        ..Endpoint::default()
    };
    let mut by_ports: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: Some(p.port),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        ports.sort();
        let all = by_ports.entry(ports).or_default();
        all.extend(subset.addresses.iter().flatten().map(|a| one(a, true)));
        all.extend(subset.not_ready_addresses.iter().flatten().map(|a| one(a, false)));
        all.retain(|e| e.addresses.iter().all(|ip| family_of(ip) == Some("IPv4")));
    }
    by_ports.retain(|_, all| !all.is_empty());
    by_ports.into_iter().collect()
}
