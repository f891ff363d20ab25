//! What the agent is told: its name, whom it works with, and the machine's settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Ids, SharedClock};
use client::Client;
use driver::Driver;
use k8s_openapi::api::core::v1::{Pod, Taint};
use ports::PodNetwork;

use crate::images::Images;

/// Amounts that replace what the machine is found to have; `None` is "as found".
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub ephemeral_storage_bytes: Option<u64>,
    /// How many pods; 110 as upstream.
    pub pods: Option<u32>,
}

/// What allocatable is less than capacity by: the system's and this program's own part.
#[derive(Debug, Clone, Copy)]
pub struct Reserved {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_storage_percent: u64,
}

impl Default for Reserved {
    fn default() -> Self {
        Self { cpu_millis: 100, memory_bytes: 200 << 20, ephemeral_storage_percent: 10 }
    }
}

/// Who has to know that a pod is leaving before its processes are told to stop: routers that still send to it.
#[async_trait]
pub trait Leaving: Send + Sync + 'static {
    /// Returns once nobody sends new connections to the pod any more; it is not waited for longer than
    /// [`crate::limits::LEAVING_WAIT`].
    async fn leaving(&self, pod: &Pod);
}

#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// With the identity `system:node:NAME`.
    pub client: Client,
    /// By the handler of their RuntimeClass; `container` is what a pod without one gets.
    pub drivers: BTreeMap<String, Arc<dyn Driver>>,
    pub network: Arc<dyn PodNetwork>,
    pub images: Arc<dyn Images>,
    pub clock: SharedClock,
    pub ids: Ids,
    pub data_dir: PathBuf,
    /// On tmpfs, mode 0700: secrets and memory volumes are below it.
    pub run_dir: PathBuf,
    pub capacity: Capacity,
    pub reserved: Reserved,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// This node's part of the pod range, `10.42.0.0/24`.
    pub pod_cidr: String,
    /// `KUBERNETES_SERVICE_HOST` and `…_PORT` of every container.
    pub kubernetes_service: (String, u16),
    pub cluster_domain: String,
    /// The node's own resolver configuration, for `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// `v1.33.…`: `nodeInfo.kubeletVersion`.
    pub version: String,
    /// Bytes that images which no pod uses may keep.
    pub image_budget_bytes: u64,
    /// PID limit of each pod; 0 is none.
    pub pod_pids_limit: u64,
    /// Asked before a deleted pod's containers get their stop signal.
    pub leaving: Option<Arc<dyn Leaving>>,
}

impl Config {
    /// Everything else at its default.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        node_name: &str,
        client: Client,
        drivers: BTreeMap<String, Arc<dyn Driver>>,
        network: Arc<dyn PodNetwork>,
        images: Arc<dyn Images>,
        clock: SharedClock,
        ids: Ids,
        data_dir: PathBuf,
        run_dir: PathBuf,
    ) -> Self {
        Self {
            node_name: node_name.to_string(),
            client: client.with_field_manager("kubelet"),
            drivers,
            network,
            images,
            clock,
            ids,
            data_dir,
            run_dir,
            capacity: Capacity::default(),
            reserved: Reserved::default(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pod_cidr: String::new(),
            kubernetes_service: ("10.43.0.1".to_string(), 443),
            cluster_domain: "cluster.local".to_string(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            version: "v1.33.0".to_string(),
            image_budget_bytes: 20 << 30,
            pod_pids_limit: 0,
            leaving: None,
        }
    }
}
