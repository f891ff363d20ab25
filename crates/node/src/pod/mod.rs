//! One pod on this node: its worker and what the worker starts.
//!
//! The worker is the only one who changes what is known of its pod; everything else runs as a task beside it and reports
//! by a message, so that an exit, a deletion or a shortened grace is answered at once, whatever is under way.

mod hooks;
mod prepare;
mod start;
mod stop;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use driver::{ContainerState, Driver};
use k8s_openapi::api::core::v1::{Container as Spec, ObjectReference, Pod};
use plan::pod_actions::{Terminal, Waiting, app_containers, init_containers};
use plan::probes::Kind;

use crate::agent::Shared;

pub(crate) use hooks::run_exec;
pub(crate) use prepare::remove_files;
pub(crate) use worker::{Handle, Recovered, Worker};

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A container of the pod changed its state.
    Container(ContainerState),
    /// The driver's pod is gone.
    Lost,
    Prepared(Result<Vec<IpAddr>, String>),
    TornDown(Result<(), String>),
    /// The driver has made an attempt; it will run.
    Created {
        container: String,
        attempt: u32,
        image_id: String,
        digest: String,
        stop_signal: i32,
    },
    /// An attempt runs and its `postStart` is over.
    Started {
        container: String,
        attempt: u32,
    },
    /// An attempt came to nothing before it was made.
    NotMade {
        container: String,
        waiting: Waiting,
    },
    /// The driver made an attempt but could not run it.
    NotStarted {
        container: String,
        attempt: u32,
        error: String,
    },
    HookFailed {
        container: String,
        attempt: u32,
    },
    Verdict {
        container: String,
        attempt: u32,
        kind: Kind,
        value: bool,
    },
    /// The node ends the pod.
    End(Terminal),
    /// Something that the pod's volumes come from changed.
    Refresh,
    Refreshed,
    StatusWritten(Result<Box<Pod>, client::Error>),
    Deleted(Result<(), client::Error>),
}

/// What the tasks of a pod share; made anew when the pod changes.
#[derive(Clone)]
pub(crate) struct PodCx {
    pub shared: Arc<Shared>,
    pub uid: String,
    pub pod: Arc<Pod>,
    pub driver: Arc<dyn Driver>,
    pub addresses: Vec<IpAddr>,
    pub inbox: tokio::sync::mpsc::Sender<Message>,
}

impl PodCx {
    pub async fn send(&self, message: Message) {
        // A worker that is gone needs no report.
        let _ = self.inbox.send(message).await;
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn host_network(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true))
    }

    /// The address that probes and hooks go to.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.first().copied()
    }

    /// `spec.containers{web}`, as events about a container say.
    pub fn about(&self, container: &str) -> ObjectReference {
        about(&self.pod, Some(container))
    }

    /// About the whole pod.
    pub fn whole(&self) -> ObjectReference {
        client::reference(&*self.pod)
    }

    pub fn spec(&self, container: &str) -> Option<&Spec> {
        init_containers(&self.pod).iter().chain(app_containers(&self.pod)).find(|c| c.name == container)
    }

    pub fn paths(&self) -> Paths {
        Paths::new(&self.shared, &self.uid, self.namespace(), self.name())
    }
}

/// What an event is about: the pod, or one container of it.
pub(crate) fn about(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let mut about = client::reference(pod);
    if let Some(name) = container {
        let init = init_containers(pod).iter().any(|c| c.name == name);
        about.field_path = Some(format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" }));
    }
    about
}

/// Where a pod's files are.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// `<data>/pods/<uid>`; the driver has its own part in it.
    pub data: PathBuf,
    /// Volumes on disk: `<data>/pods/<uid>/volumes`.
    pub volumes: PathBuf,
    /// Volumes in memory: `<run>/pods/<uid>/volumes`; the driver has its own part beside it.
    pub memory: PathBuf,
    /// hosts, resolv.conf, termination messages: `<data>/pods/<uid>/etc`.
    pub etc: PathBuf,
    pub logs: PathBuf,
}

impl Paths {
    pub fn new(shared: &Shared, uid: &str, namespace: &str, name: &str) -> Self {
        let config = &shared.config;
        let data = config.data_dir.join("pods").join(uid);
        Self {
            volumes: data.join("volumes"),
            memory: config.run_dir.join("pods").join(uid).join("volumes"),
            etc: data.join("etc"),
            logs: config.data_dir.join("logs").join(format!("{namespace}_{name}_{uid}")),
            data,
        }
    }
}
