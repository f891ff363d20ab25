//! A cluster without machines: the client's fake server, what it lacks (discovery, bindings, generations, collections),
//! and an agent that makes bound pods ready.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base::{Ids, ManualClock};
use bytes::Bytes;
use client::fake::FakeServer;
use client::{Body, CancellationToken, Client, Transport};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{Config, run};

#[derive(Clone, Default)]
pub struct Cluster {
    pub server: FakeServer,
    pub stop: CancellationToken,
    /// Requests whose `METHOD path` contains the text are refused with 403 and this message.
    pub refuse: Arc<Mutex<Option<(String, String)>>>,
}

/// Kind, plural, whether namespaced.
type Row = (&'static str, &'static str, bool);

const KINDS: [(&str, &[Row]); 4] = [
    (
        "/api/v1",
        &[
            ("Pod", "pods", true),
            ("Service", "services", true),
            ("Endpoints", "endpoints", true),
            ("Node", "nodes", false),
            ("Namespace", "namespaces", false),
            ("ServiceAccount", "serviceaccounts", true),
            ("ConfigMap", "configmaps", true),
            ("Event", "events", true),
        ],
    ),
    ("/apis/apps/v1", &[("Deployment", "deployments", true), ("ReplicaSet", "replicasets", true)]),
    ("/apis/discovery.k8s.io/v1", &[("EndpointSlice", "endpointslices", true)]),
    ("/apis/networking.k8s.io/v1", &[("Ingress", "ingresses", true), ("IngressClass", "ingressclasses", false)]),
];

impl Cluster {
    /// Controllers, a namespace and an agent for each of the nodes.
    pub async fn start(nodes: &[&str]) -> (Self, JoinHandle<()>) {
        let cluster = Self::default();
        cluster.create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})).await;
        for node in nodes {
            cluster.node(node).await;
        }
        let clients = cluster.clone();
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let handle = run(&move |_| clients.client(), clock, Ids::seeded(1), Config::new("PEM"), cluster.stop.clone());
        (cluster, handle)
    }

    pub fn client(&self) -> Client {
        Client::new(Arc::new(self.clone()))
    }

    /// A node of 4 cores, and its agent.
    pub async fn node(&self, name: &str) -> JoinHandle<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}});
        self.create("/api/v1/nodes", node).await;
        tokio::spawn(agent(self.clone(), name.to_string()))
    }

    pub async fn create(&self, path: &str, object: Value) -> Value {
        self.client().post(path, &object).await.unwrap()
    }

    pub async fn patch(&self, path: &str, patch: Value) -> Value {
        self.client().patch_path(path, &client::Patch::Merge(patch)).await.unwrap()
    }

    pub fn objects(&self, collection: &str) -> Vec<Value> {
        self.server.objects(collection)
    }

    /// `reason: message` of all events so far.
    pub fn events(&self) -> Vec<String> {
        let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_string();
        self.objects("/api/v1/events").iter().map(|e| format!("{}: {}", text(e, "reason"), text(e, "message"))).collect()
    }

    /// Waits (in the test's own time) until it is so.
    pub async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..3000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}\nevents: {:#?}\npods: {:#?}", self.events(), self.objects("/api/v1/pods"));
    }

    fn answer(value: &Value, code: u16) -> io::Result<Response<Body>> {
        let body = Full::new(Bytes::from(value.to_string())).map_err(|e| match e {}).boxed_unsync();
        Response::builder().status(code).body(body).map_err(io::Error::other)
    }

    /// What the fake does not serve; `None`: it does.
    fn discovery(path: &str) -> Option<Value> {
        if path == "/apis" {
            let group = |path: &str| {
                let (name, version) = path.strip_prefix("/apis/")?.split_once('/')?;
                let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
                Some(json!({"name": name, "versions": [version.clone()], "preferredVersion": version}))
            };
            return Some(json!({"groups": KINDS.iter().filter_map(|(p, _)| group(p)).collect::<Vec<_>>()}));
        }
        let (_, kinds) = KINDS.iter().find(|(p, _)| *p == path)?;
        let row = |(kind, plural, namespaced): &Row| json!({"kind": kind, "name": plural, "singularName": "", "namespaced": namespaced, "verbs": ["list", "watch", "delete"]});
        let group_version = path.trim_start_matches("/apis/").trim_start_matches("/api/");
        Some(json!({"groupVersion": group_version, "resources": kinds.iter().map(row).collect::<Vec<_>>()}))
    }

    /// Deletes what is in the collection, object by object.
    async fn delete_collection(&self, path: &str) -> io::Result<Response<Body>> {
        let list = self.client().get_path(path).await.map_err(io::Error::other)?;
        for object in list["items"].as_array().into_iter().flatten() {
            let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
            self.client().delete_path(&path, &Default::default()).await.map_err(io::Error::other)?;
        }
        Self::answer(&json!({}), 200)
    }

    /// A spec that changes counts on, as the real server's does.
    async fn with_generation(&self, path: &str, mut body: Value) -> Value {
        if !body["spec"].is_null() && !path.ends_with("/status") {
            let old = self.server.client().get_path(path).await.unwrap_or_default();
            body["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(1) + 1).into();
        }
        body
    }
}

#[async_trait]
impl Transport for Cluster {
    async fn send(&self, request: Request<Bytes>) -> io::Result<Response<Body>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_string());
        let refused = self.refuse.lock().unwrap().clone();
        if let Some((what, why)) = refused
            && format!("{method} {path}").contains(&what)
        {
            return Self::answer(&serde_json::to_value(api_status(&why)).unwrap_or_default(), 403);
        }
        if let Some(found) = Self::discovery(&path).filter(|_| method == Method::GET) {
            return Self::answer(&found, 200);
        }
        let forward = |method: Method, path: &str, content_type: &str, body: Value| {
            let request = Request::builder().method(method).uri(path).header("content-type", content_type);
            request.body(Bytes::from(body.to_string())).map_err(io::Error::other)
        };
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let collection = [
            "pods",
            "services",
            "endpoints",
            "serviceaccounts",
            "configmaps",
            "events",
            "deployments",
            "replicasets",
            "endpointslices",
            "ingresses",
        ];
        match method {
            Method::POST if path.ends_with("/binding") => {
                let pod = path.trim_end_matches("/binding");
                let patch = json!({"spec": {"nodeName": body["target"]["name"]}});
                self.server.send(forward(Method::PATCH, pod, "application/merge-patch+json", patch)?).await
            }
            Method::PUT if path.ends_with("/finalize") => {
                // The fake knows `metadata.finalizers` only: those of the spec stand for it.
                let namespace = path.trim_end_matches("/finalize");
                let patch = json!({"spec": body["spec"], "metadata": {"finalizers": null}});
                self.server.send(forward(Method::PATCH, namespace, "application/merge-patch+json", patch)?).await
            }
            Method::DELETE if collection.iter().any(|c| path.ends_with(&format!("/{c}"))) => self.delete_collection(&path).await,
            Method::PATCH if path.starts_with("/apis/apps/") => {
                let body = self.with_generation(&path, body).await;
                self.server.send(forward(Method::PATCH, &path, "application/merge-patch+json", body)?).await
            }
            _ => self.server.send(request).await,
        }
    }
}

fn api_status(why: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": why})
}

/// Makes the pods of its node ready, one a beat, and reports.
async fn agent(cluster: Cluster, node: String) {
    let mut beat = 0_u64;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        beat += 1;
        if beat.is_multiple_of(20) {
            let now = base::Timestamp::from_second(1_767_225_600 + beat as i64).unwrap();
            let conditions = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": base::rfc3339(now)}]);
            cluster.patch(&format!("/api/v1/nodes/{node}/status"), json!({"status": {"conditions": conditions}})).await;
        }
        let here = |p: &&Value| p["spec"]["nodeName"] == node.as_str() && p["status"]["podIP"].is_null();
        let next = cluster.objects("/api/v1/pods").iter().find(here).cloned();
        if let Some(pod) = next {
            let (ns, name) =
                (pod["metadata"]["namespace"].as_str().unwrap_or_default(), pod["metadata"]["name"].as_str().unwrap_or_default());
            let status = json!({"phase": "Running", "podIP": format!("10.42.0.{}", beat % 250 + 1), "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
            let _ = cluster
                .client()
                .patch_path(&format!("/api/v1/namespaces/{ns}/pods/{name}/status"), &client::Patch::Merge(json!({ "status": status })))
                .await;
        }
    }
}
