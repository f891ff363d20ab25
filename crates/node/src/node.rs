//! This machine as a Node: registration, status, and the Lease that says it is alive.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Timestamp;
use client::{Client, Informer, Patch};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::agent::Shared;
use crate::limits::{LEASE_RENEW, LEASE_SECONDS, NODE_IMAGES_MAX, NODE_STATUS_CHECK, NODE_STATUS_REPORT, REGISTER_AGAIN};
use crate::machine::{self, Amounts, Pressure};

const LEASES: &str = "kube-node-lease";

/// Registers, then renews and reports until the end. `ready` is `None`, or why the node cannot run pods.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut said = false;
    while let Err(e) = register(&shared).await {
        if !said {
            tracing::warn!("the node is not registered yet: {e}");
        }
        said = true;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REGISTER_AGAIN) => {}
        }
    }
    let (lease, report) = (leases(&shared, &stop), reports(&shared, &stop));
    tokio::join!(lease, report);
}

fn labels(shared: &Shared) -> BTreeMap<String, String> {
    let name = shared.config.node_name.clone();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine::architecture()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .collect();
    labels.extend(shared.config.labels.clone());
    labels
}

/// Creates the Node, or brings labels and ranges of the one that is there up to date.
async fn register(shared: &Shared) -> Result<(), client::Error> {
    let (config, now) = (&shared.config, shared.config.clock.now());
    let cidr = (!config.pod_cidr.is_empty()).then(|| config.pod_cidr.clone());
    let node = Node {
        metadata: ObjectMeta { name: Some(config.node_name.clone()), labels: Some(labels(shared)), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            pod_cidr: cidr.clone(),
            pod_cidrs: cidr.clone().map(|c| vec![c]),
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status(shared, None, &[], now)),
    };
    match config.client.find::<Node>("", &config.node_name).await? {
        None => drop(config.client.create(&node).await?),
        Some(old) => {
            let mut patch = json!({ "metadata": { "labels": labels(shared) } });
            if let Some(cidr) = cidr.filter(|_| old.spec.as_ref().is_none_or(|s| s.pod_cidr.is_none())) {
                patch["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
            }
            config.client.patch::<Node>("", &config.node_name, &Patch::Merge(patch), "").await?;
        }
    }
    let old = config.client.find::<Node>("", &config.node_name).await?;
    report(shared, old.as_ref()).await
}

// ---- status --------------------------------------------------------------------------------------------------------

fn amounts(of: &Amounts) -> BTreeMap<String, Quantity> {
    use api::quantity::Quantity as Q;
    let cpu = Q::from_millis(i64::try_from(of.cpu_millis).unwrap_or(i64::MAX));
    let all = [
        ("cpu", cpu.to_string()),
        ("memory", Q::from_bytes(of.memory_bytes / 1024 * 1024).to_string()),
        ("ephemeral-storage", Q::from_bytes(of.ephemeral_bytes / 1024 * 1024).to_string()),
        ("pods", of.pods.to_string()),
        ("hugepages-1Gi", "0".to_string()),
        ("hugepages-2Mi", "0".to_string()),
    ];
    all.into_iter().map(|(name, q)| (name.to_string(), Quantity(q))).collect()
}

fn status(shared: &Shared, before: Option<&NodeStatus>, images: &[crate::images::Listed], now: Timestamp) -> NodeStatus {
    let config = &shared.config;
    let uname = rustix::system::uname();
    let hostname = config.node_name.clone();
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_string(), address };
    let images: Vec<ContainerImage> = images
        .iter()
        .take(NODE_IMAGES_MAX)
        .map(|i| ContainerImage { names: Some(i.names.clone()), size_bytes: i64::try_from(i.size_bytes).ok() })
        .collect();
    NodeStatus {
        addresses: Some(vec![address("InternalIP", shared.node_ip.to_string()), address("Hostname", hostname)]),
        capacity: Some(amounts(&shared.capacity)),
        allocatable: Some(amounts(&shared.allocatable)),
        conditions: Some(conditions(shared, before, machine::pressure(&config.data_dir), now)),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: 10250 }) }),
        images: (!images.is_empty()).then_some(images),
        node_info: Some(NodeSystemInfo {
            architecture: machine::architecture().to_string(),
            boot_id: machine::line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("staithe://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: uname.release().to_string_lossy().into_owned(),
            kube_proxy_version: String::new(),
            kubelet_version: config.version.clone(),
            machine_id: machine::line("/etc/machine-id"),
            operating_system: "linux".to_string(),
            os_image: machine::os_image(),
            system_uuid: machine::line("/sys/class/dmi/id/product_uuid"),
            swap: None,
        }),
        ..NodeStatus::default()
    }
}

fn conditions(shared: &Shared, before: Option<&NodeStatus>, pressure: Pressure, now: Timestamp) -> Vec<NodeCondition> {
    let pressed = |on: bool, kind: &'static str, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
        let (reason, message) = if on { yes } else { no };
        (kind, on, reason, message.to_string())
    };
    let all = [
        pressed(
            pressure.memory,
            "MemoryPressure",
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressed(
            pressure.disk,
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressed(
            pressure.pids,
            "PIDPressure",
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        match shared.unready() {
            None => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_string()),
            Some(why) => ("Ready", false, "KubeletNotReady", why),
        },
    ];
    // A new agent on a machine that ran on: pods serve meanwhile, and were they called unready, no Service would send to them.
    let ran_on = |s: &&NodeStatus| s.node_info.as_ref().is_some_and(|i| i.boot_id == machine::line("/proc/sys/kernel/random/boot_id"));
    let kept = before.filter(ran_on).filter(|_| shared.is_starting()).and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let kept = kept.iter().find(|c| c.type_ == "Ready" && c.status == "True");
    let before = before.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    all.into_iter()
        .map(|(kind, on, reason, message)| {
            if let Some(kept) = kept.filter(|c| c.type_ == kind) {
                return kept.clone();
            }
            let status = if on { "True" } else { "False" };
            let same = before.iter().find(|c| c.type_ == kind && c.status == status);
            NodeCondition {
                type_: kind.to_string(),
                status: status.to_string(),
                reason: Some(reason.to_string()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(same.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now))),
            }
        })
        .collect()
}

/// Writes the status where it differs from `node`'s in more than its heartbeat, or the last report is old.
async fn report(shared: &Shared, node: Option<&Node>) -> Result<(), client::Error> {
    let now = shared.config.clock.now();
    let images = shared.config.images.list().await;
    let before = node.and_then(|n| n.status.as_ref());
    let wanted = status(shared, before, &images, now);
    if let Some(before) = before
        && !differs(before, &wanted, now)
    {
        return Ok(());
    }
    let patch = Patch::Strategic(json!({ "status": wanted }));
    shared.config.client.patch::<Node>("", &shared.config.node_name, &patch, "status").await.map(drop)
}

fn differs(before: &NodeStatus, wanted: &NodeStatus, now: Timestamp) -> bool {
    let conditions = |s: &NodeStatus| -> Vec<(String, String, Option<String>)> {
        let ours = |c: &&NodeCondition| wanted.conditions.iter().flatten().any(|w| w.type_ == c.type_);
        let mut all: Vec<_> =
            s.conditions.iter().flatten().filter(ours).map(|c| (c.type_.clone(), c.status.clone(), c.message.clone())).collect();
        all.sort();
        all
    };
    let oldest = before.conditions.iter().flatten().filter_map(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0).min();
    let stale = oldest.is_none_or(|t| now.duration_since(t).unsigned_abs() > NODE_STATUS_REPORT);
    stale
        || conditions(before) != conditions(wanted)
        || before.capacity != wanted.capacity
        || before.allocatable != wanted.allocatable
        || before.addresses != wanted.addresses
        || before.node_info != wanted.node_info
        || before.images != wanted.images
}

async fn reports(shared: &Shared, stop: &CancellationToken) {
    let field = format!("metadata.name={}", shared.config.node_name);
    let nodes = Informer::<Node>::start_scoped(&shared.config.client, "", "", &field);
    let mut changes = nodes.subscribe();
    loop {
        let node = nodes.snapshot().get("", &shared.config.node_name).cloned();
        let result = match &node {
            Some(node) => report(shared, Some(node)).await,
            // Somebody deleted it while it lives: it comes back.
            None if nodes.is_ready() => register(shared).await,
            None => Ok(()),
        };
        if let Err(e) = result {
            tracing::debug!("the node's status was not written: {e}");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = changes.next() => {}
            () = shared.readiness_changed.notified() => {}
            () = tokio::time::sleep(NODE_STATUS_CHECK) => {}
        }
    }
}

// ---- lease ---------------------------------------------------------------------------------------------------------

async fn leases(shared: &Shared, stop: &CancellationToken) {
    let mut owner = None;
    loop {
        if owner.is_none() {
            let node = shared.config.client.find::<Node>("", &shared.config.node_name).await.ok().flatten();
            owner = node.and_then(|n| n.metadata.uid);
        }
        if let Err(e) = renew(&shared.config.client, &shared.config.node_name, owner.as_deref(), shared.config.clock.now()).await {
            tracing::debug!("the lease was not renewed: {e}");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LEASE_RENEW) => {}
        }
    }
}

async fn renew(client: &Client, name: &str, owner: Option<&str>, now: Timestamp) -> Result<(), client::Error> {
    let patch = Patch::Merge(json!({ "spec": { "renewTime": base::rfc3339_micro(now), "holderIdentity": name } }));
    match client.patch::<Lease>(LEASES, name, &patch, "").await {
        Err(e) if e.is_not_found() => {}
        done => return done.map(drop),
    }
    let owner = owner.map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_string(),
        uid: uid.to_string(),
        ..OwnerReference::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some(LEASES.into()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_string()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    };
    client.create(&lease).await.map(drop)
}
