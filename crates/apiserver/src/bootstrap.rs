//! What every cluster has: namespaces, roles, classes, the `kubernetes` and DNS Services. Made at start, kept as they are
//! where users changed them, completed where something is missing.

use std::net::IpAddr;
use std::sync::Arc;

use api::{Status, Value};
use futures_util::future::join_all;
use http::Method;
use serde_json::json;

use crate::Server;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

impl Server {
    /// Makes what is missing. Safe to repeat; call it before serving.
    pub async fn bootstrap(self: &Arc<Self>) -> Result<(), Status> {
        let namespace = |name: &&str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let namespaces = NAMESPACES.iter().map(|name| self.ensure("/api/v1/namespaces", namespace(name)));
        join_all(namespaces).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        // Together, so that the store commits them together.
        let roles = api::rbac::bootstrap().into_iter().map(|object| self.ensure_role(object));
        join_all(roles).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        let classes = classes().into_iter().map(|(path, object)| self.ensure(path, object));
        join_all(classes).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.ensure_services().await?;
        self.publish_endpoints().await
    }

    /// Creates `object` unless there is one of its name; returns what is there.
    async fn ensure(self: &Arc<Self>, path: &str, object: Value) -> Result<Value, Status> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let one = format!("{path}/{name}");
        match self.ask(Method::GET, &one, None).await {
            Err(status) if status.is_not_found() => {}
            found => return found,
        }
        match self.ask(Method::POST, path, Some(&object)).await {
            Err(status) if status.is_already_exists() => self.ask(Method::GET, &one, None).await,
            made => made,
        }
    }

    /// Default roles and bindings are completed at every start, unless their autoupdate annotation says `false`.
    async fn ensure_role(self: &Arc<Self>, wanted: Value) -> Result<(), Status> {
        let kind = wanted["kind"].as_str().unwrap_or_default().to_lowercase();
        let namespace = wanted["metadata"]["namespace"].as_str().map_or(String::new(), |ns| format!("/namespaces/{ns}"));
        let path = format!("/apis/rbac.authorization.k8s.io/v1{namespace}/{kind}s");
        let mut found = self.ensure(&path, wanted.clone()).await?;
        if found["metadata"]["annotations"][api::rbac::AUTOUPDATE] == "false" {
            return Ok(());
        }
        let mut incomplete = false;
        for field in ["rules", "subjects"] {
            for item in wanted[field].as_array().map(Vec::as_slice).unwrap_or_default() {
                let have = found[field].as_array().map(Vec::as_slice).unwrap_or_default();
                if !have.iter().any(|h| includes(h, item)) {
                    incomplete = true;
                    match found[field].as_array_mut() {
                        Some(list) => list.push(item.clone()),
                        None => found[field] = json!([item]),
                    }
                }
            }
        }
        if incomplete {
            let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
            let url = format!("{path}/{}", percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC));
            self.ask(Method::PUT, &url, Some(&found)).await?;
        }
        Ok(())
    }

    async fn ensure_services(self: &Arc<Self>) -> Result<(), Status> {
        let nth = |n| self.allocators.nth(n).to_string();
        let kubernetes = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "labels": { "component": "apiserver", "provider": "kubernetes" } },
            "spec": {
                "type": "ClusterIP", "clusterIP": nth(1), "sessionAffinity": "None",
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": self.config.api_port }],
            },
        });
        let found = self.ensure("/api/v1/namespaces/default/services", kubernetes).await?;
        if found["spec"]["ports"][0]["targetPort"] != self.config.api_port {
            let patch =
                json!({ "spec": { "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": self.config.api_port }] } });
            self.ask(Method::PATCH, "/api/v1/namespaces/default/services/kubernetes", Some(&patch)).await?;
        }
        let dns = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" } },
            "spec": {
                "type": "ClusterIP", "clusterIP": nth(10),
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
                ],
            },
        });
        self.ensure("/api/v1/namespaces/kube-system/services", dns).await?;
        Ok(())
    }

    /// The `kubernetes` Service leads to this server, whatever its address was before.
    async fn publish_endpoints(self: &Arc<Self>) -> Result<(), Status> {
        // Upstream refuses loopback addresses as endpoints; a server without any other is reached through the node.
        let reachable: Vec<&IpAddr> = self.config.api_addresses.iter().filter(|a| !a.is_loopback()).collect();
        if reachable.is_empty() {
            return Ok(());
        }
        let port = json!({ "name": "https", "port": self.config.api_port, "protocol": "TCP" });
        let ips: Vec<Value> = reachable.iter().map(|a| json!({ "ip": a })).collect();
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": "kubernetes", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{ "addresses": ips, "ports": [port] }],
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "kubernetes", "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": "IPv4",
            "endpoints": reachable.iter().map(|a| json!({ "addresses": [a], "conditions": { "ready": true } })).collect::<Vec<_>>(),
            "ports": [port],
        });
        for (path, wanted, field) in [
            ("/api/v1/namespaces/default/endpoints", endpoints, "subsets"),
            ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice, "endpoints"),
        ] {
            let mut found = self.ensure(path, wanted.clone()).await?;
            found[field] = wanted[field].clone();
            if wanted["ports"].is_array() {
                found["ports"] = wanted["ports"].clone();
            }
            self.ask(Method::PUT, &format!("{path}/kubernetes"), Some(&found)).await?;
        }
        Ok(())
    }
}

/// Whether `have` says everything that `wanted` says; lists are compared as sets.
fn includes(have: &Value, wanted: &Value) -> bool {
    match (have, wanted) {
        (Value::Object(h), Value::Object(w)) => w.iter().all(|(k, v)| h.get(k).is_some_and(|h| includes(h, v))),
        (Value::Array(h), Value::Array(w)) => w.iter().all(|v| h.contains(v)),
        _ => have == wanted,
    }
}

fn classes() -> Vec<(&'static str, Value)> {
    let runtime = |name: &str| {
        let object = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": name }, "handler": name });
        ("/apis/node.k8s.io/v1/runtimeclasses", object)
    };
    let priority = |name: &str, value: i64, description: &str| {
        let object = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description,
        });
        ("/apis/scheduling.k8s.io/v1/priorityclasses", object)
    };
    let default = json!({ "ingressclass.kubernetes.io/is-default-class": "true" });
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": { "name": "staithe", "annotations": default },
        "spec": { "controller": "staithe.dev/router" },
    });
    vec![
        runtime("container"),
        priority("system-cluster-critical", 2_000_000_000, "For pods that the cluster needs, on whatever node."),
        priority("system-node-critical", 2_000_001_000, "For pods that their node needs."),
        ("/apis/networking.k8s.io/v1/ingressclasses", ingress),
    ]
}
