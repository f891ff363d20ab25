//! Where an Ingress is reached: the addresses of the nodes, each of which runs the router.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress, IngressLoadBalancerStatus};

use crate::{Action, Plan, Reason, conditions, conditions::Condition, objects};

/// `spec.controller` of the IngressClass that this router serves.
pub const CONTROLLER: &str = "staithe.dev/router";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub struct Snapshot<'a> {
    pub ingress: &'a Ingress,
    pub classes: &'a [&'a IngressClass],
    pub nodes: &'a [&'a Node],
}

/// Whether the router serves this Ingress: its class is ours, or it names none and ours is the default or the only one.
pub fn ours(ingress: &Ingress, classes: &[&IngressClass]) -> bool {
    let of_ours = |c: &&IngressClass| c.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER);
    let named =
        ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref()).or(objects::annotation(&ingress.metadata, CLASS_ANNOTATION));
    match named {
        Some(name) => classes.iter().filter(|c| of_ours(c)).any(|c| objects::name(*c) == name),
        None => {
            let default = |c: &&&IngressClass| objects::annotation(&c.metadata, DEFAULT_CLASS) == Some("true");
            classes.iter().find(default).map_or(classes.iter().all(&of_ours), of_ours)
        }
    }
}

pub fn plan(s: &Snapshot) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    if objects::deleting(s.ingress) || !ours(s.ingress, s.classes) {
        return (plan, Vec::new());
    }
    let mut addresses: Vec<String> = s.nodes.iter().filter(|n| serving(n)).filter_map(|n| address(n)).collect();
    addresses.sort();
    addresses.dedup();
    let ingress: Vec<_> =
        addresses.into_iter().map(|ip| IngressLoadBalancerIngress { ip: Some(ip), ..IngressLoadBalancerIngress::default() }).collect();
    let mut wanted = s.ingress.clone();
    let status = wanted.status.get_or_insert_default();
    status.load_balancer = Some(IngressLoadBalancerStatus { ingress: (!ingress.is_empty()).then_some(ingress) });
    plan.wave(Action::patch(s.ingress, &wanted, Some("status")));
    (plan, Vec::new())
}

fn serving(node: &Node) -> bool {
    let excluded = node.metadata.labels.as_ref().is_some_and(|l| l.contains_key("node.kubernetes.io/exclude-from-external-load-balancers"));
    !excluded && node.status.as_ref().is_some_and(|s| conditions::find(&s.conditions, "Ready").is_some_and(|c| c.status() == "True"))
}

/// The external address, or else the internal one.
fn address(node: &Node) -> Option<String> {
    let of =
        |kind: &str| node.status.iter().flat_map(|s| s.addresses.iter().flatten()).find(|a| a.type_ == kind).map(|a| a.address.clone());
    of("ExternalIP").or_else(|| of("InternalIP"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_that_are_ready_and_classes_that_are_ours() {
        let node = |ip: &str, ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": ip}, "status": {"conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "InternalIP", "address": ip}]}}))
            .unwrap()
        };
        let class = |name: &str, controller: &str, default: bool| -> IngressClass {
            let notes = json!({ DEFAULT_CLASS: default.to_string() });
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": notes}, "spec": {"controller": controller}})).unwrap()
        };
        let ingress = |class: Option<&str>| -> Ingress {
            serde_json::from_value(json!({"metadata": {"name": "i", "namespace": "d"}, "spec": {"ingressClassName": class}})).unwrap()
        };
        let (mine, other) = (class("staithe", CONTROLLER, true), class("nginx", "k8s.io/ingress-nginx", false));
        let classes = [&mine, &other];
        for (name, want) in [(Some("staithe"), true), (Some("nginx"), false), (Some("none"), false), (None, true)] {
            assert_eq!(ours(&ingress(name), &classes), want, "{name:?}");
        }
        let foreign = class("nginx", "k8s.io/ingress-nginx", true);
        assert!(!ours(&ingress(None), &[&foreign, &class("staithe", CONTROLLER, false)]));
        assert!(ours(&ingress(None), &[]));

        let nodes = [node("10.0.0.2", "True"), node("10.0.0.1", "True"), node("10.0.0.3", "False")];
        let refs: Vec<&Node> = nodes.iter().collect();
        let (made, _) = plan(&Snapshot { ingress: &ingress(Some("staithe")), classes: &classes, nodes: &refs });
        let Some(Action::Patch { patch, .. }) = made.actions().next() else { panic!() };
        assert_eq!(patch["status"]["loadBalancer"]["ingress"], json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]));
    }
}
