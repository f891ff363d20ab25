//! What the scheduler knows of the cluster: kept up to date event by event, so that one decision costs no walk over all pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::resources::{self, Resources};
use crate::objects;
use crate::selector::Labels;

/// A port of the node's that a pod holds: address (`0.0.0.0` is all), protocol, port.
pub(super) type HostPort = (String, String, i32);

/// A node and what is on it. Pods may be known before their node is.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub node: Option<Arc<Node>>,
    pub pods: BTreeMap<String, Arc<Pod>>,
    pub allocatable: Resources,
    /// Requests of the pods, as they are.
    pub used: Resources,
    /// CPU and memory for scoring: pods that ask for nothing count as 100m and 200 MiB.
    pub(super) weight: [i64; 2],
    pub(super) by_owner: BTreeMap<String, usize>,
    pub(super) ports: Vec<HostPort>,
    /// Pods here that keep others away.
    pub(super) repelling: usize,
}

impl NodeInfo {
    pub(super) fn labels(&self) -> Option<&Labels> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    fn add(&mut self, pod: Arc<Pod>) {
        let asked = resources::of_pod(&pod);
        self.used.add(&asked);
        for (sum, one) in self.weight.iter_mut().zip(weight(&asked)) {
            *sum += one;
        }
        if let Some(owner) = objects::controller_of(&pod.metadata) {
            *self.by_owner.entry(owner.uid.clone()).or_default() += 1;
        }
        self.ports.extend(host_ports(&pod));
        self.repelling += usize::from(repels(&pod));
        self.pods.insert(objects::uid(&*pod).into(), pod);
    }

    fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        let asked = resources::of_pod(&pod);
        self.used.subtract(&asked);
        for (sum, one) in self.weight.iter_mut().zip(weight(&asked)) {
            *sum -= one;
        }
        if let Some(owner) = objects::controller_of(&pod.metadata)
            && let Some(n) = self.by_owner.get_mut(&owner.uid)
        {
            *n -= 1;
            if *n == 0 {
                self.by_owner.remove(&owner.uid);
            }
        }
        for port in host_ports(&pod) {
            if let Some(at) = self.ports.iter().position(|p| *p == port) {
                self.ports.swap_remove(at);
            }
        }
        self.repelling -= usize::from(repels(&pod));
    }
}

pub(super) fn weight(asked: &Resources) -> [i64; 2] {
    let or = |name: &str, default: i64| if asked.get(name) == 0 { default } else { asked.get(name) };
    [or("cpu", 100), or("memory", 200 << 20)]
}

pub(super) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let held = ports.filter(|p| p.host_port.is_some_and(|n| n > 0)).map(|p| {
        let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        (ip, p.protocol.clone().unwrap_or_else(|| "TCP".into()), p.host_port.unwrap_or_default())
    });
    held.collect()
}

fn repels(pod: &Pod) -> bool {
    let anti = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
    anti.is_some_and(|a| a.required_during_scheduling_ignored_during_execution.as_ref().is_some_and(|t| !t.is_empty()))
}

#[derive(Debug, Clone, Default)]
pub struct Cluster {
    infos: BTreeMap<String, NodeInfo>,
    /// Where each pod is counted.
    places: BTreeMap<String, String>,
    namespaces: BTreeMap<String, Labels>,
}

impl Cluster {
    /// The nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeInfo)> {
        self.infos.iter().filter(|(_, i)| i.node.is_some()).map(|(n, i)| (n.as_str(), i))
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.infos.get(name)
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let info = self.infos.entry(objects::name(&*node).into()).or_default();
        let status = node.status.as_ref();
        info.allocatable = Resources::from_list(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())));
        info.node = Some(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.infos.get_mut(name) {
            info.node = None;
            if info.pods.is_empty() {
                self.infos.remove(name);
            }
        }
    }

    /// Counts a pod on the node that it names; one that names none, or has ended, counts nowhere.
    pub fn set_pod(&mut self, pod: Arc<Pod>) {
        if objects::node_of(&pod).is_empty() {
            // Not bound as far as the event knows; if it was placed by us meanwhile, that stands.
            return;
        }
        self.remove_pod(objects::uid(&*pod));
        if !objects::terminated(&pod) {
            let (uid, node) = (objects::uid(&*pod).to_string(), objects::node_of(&pod).to_string());
            self.infos.entry(node.clone()).or_default().add(pod);
            self.places.insert(uid, node);
        }
    }

    /// Counts a pod on a node before the binding is seen, so that the next pod finds what is left.
    pub fn assume(&mut self, pod: &Pod, node: &str) {
        let mut placed = pod.clone();
        placed.spec.get_or_insert_default().node_name = Some(node.into());
        self.set_pod(Arc::new(placed));
    }

    pub fn has_pod(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    pub fn remove_pod(&mut self, uid: &str) {
        let Some(node) = self.places.remove(uid) else { return };
        if let Some(info) = self.infos.get_mut(&node) {
            info.remove(uid);
            if info.pods.is_empty() && info.node.is_none() {
                self.infos.remove(&node);
            }
        }
    }

    /// Labels of namespaces, which affinity terms may select by.
    pub fn set_namespace(&mut self, name: &str, labels: Option<&Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels.clone()),
            None => self.namespaces.remove(name),
        };
    }

    pub(super) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }
}
