//! What a worker tells: events, the pod's status in the API, and its view for the agent's other parts.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{DeleteOptions, Patch};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use plan::pod_actions::{self, RestartPolicy, Sandbox, State, Told, app_containers, init_containers, is_sidecar};
use plan::pod_status::{self, Facts};
use plan::{Reason, Severity};

use super::super::{Message, about};
use super::{Task, Worker, meta};
use crate::agent::{ContainerView, View};
use crate::limits::WRITE_BACKOFF;
use crate::status_patch;

impl Worker {
    /// Each reason is an event once, until it goes away and comes back.
    pub(super) fn tell_new(&mut self, reasons: &[Told]) {
        let key = |t: &Told| (t.container.clone(), t.reason.code, t.reason.message.clone());
        for told in reasons {
            if !self.told.contains(&key(told)) {
                self.tell(&told.reason, Some(&told.container));
            }
        }
        self.told = reasons.iter().map(key).collect();
    }

    pub(super) fn tell(&self, reason: &Reason, container: Option<&str>) {
        let about = about(&self.pod, container);
        match reason.severity {
            Severity::Normal => self.shared.recorder.normal(&about, reason.code, reason.message.clone()),
            Severity::Warning => self.shared.recorder.warning(&about, reason.code, reason.message.clone()),
        }
    }

    pub(super) fn facts(&self) -> Facts {
        let hosted = self.pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
        let node = self.shared.node_ip.to_string();
        let begun = self.observed.sandbox == Sandbox::Ready || !self.addresses.is_empty();
        let pod_ips = match (hosted, begun) {
            (true, true) => vec![node.clone()],
            _ => self.addresses.iter().map(ToString::to_string).collect(),
        };
        Facts { host_ip: node, pod_ips, runtime: self.driver.as_ref().map_or("container", |d| d.name()).to_string() }
    }

    /// The status as it should be, against what the API has: the difference.
    pub(super) fn patch(&mut self) -> Option<serde_json::Value> {
        let mut status = pod_status::status(&self.pod, &self.observed, &self.plan, &self.facts(), self.now());
        status_patch::keep_times(&mut status, self.shown.as_ref());
        let patch = status_patch::patch(self.pod.status.as_ref(), &status, &self.uid);
        self.shown = Some(status);
        patch
    }

    pub(super) fn not_yet(&self) -> bool {
        self.write_failures > 0 && tokio::time::Instant::now() < self.write_at
    }

    pub(super) fn publish(&mut self) {
        if self.observed.removed || self.writing.is_some() || self.not_yet() || self.done {
            return;
        }
        let Some(patch) = self.patch() else { return };
        let (client, sender) = (self.shared.config.client.clone(), self.sender.clone());
        let (namespace, name) = (meta(&self.pod.metadata.namespace).to_string(), meta(&self.pod.metadata.name).to_string());
        self.writing = Some(Task::spawn(async move {
            let result = client.patch::<Pod>(&namespace, &name, &Patch::Strategic(patch), "status").await;
            let _ = sender.send(Message::StatusWritten(result.map(Box::new))).await;
        }));
    }

    pub(super) fn status_written(&mut self, result: Result<Box<Pod>, client::Error>) {
        self.writing = None;
        match result {
            Ok(pod) => {
                self.write_failures = 0;
                if pod.metadata.uid.as_deref() == Some(&self.uid) {
                    self.newer(Arc::new(*pod));
                }
            }
            // Gone, or another pod of the same name: the watch will say so.
            Err(e) if e.is_not_found() || e.is_conflict() => self.write_failed(&e),
            Err(e) => {
                tracing::warn!(pod = self.uid, "status not written: {e}");
                self.write_failed(&e);
            }
        }
    }

    fn write_failed(&mut self, _error: &client::Error) {
        self.write_failures += 1;
        self.write_at = tokio::time::Instant::now() + WRITE_BACKOFF.after(self.write_failures);
    }

    /// What others may know of this pod.
    pub(super) fn show(&self) {
        let policy = RestartPolicy::of(&self.pod);
        let view = |spec: &Spec| {
            let container = self.observed.container(&spec.name);
            let waiting = match &container.state {
                State::Failed { waiting, .. } => self.plan.waiting.get(&spec.name).unwrap_or(waiting).reason.to_string(),
                State::Absent | State::Starting { .. } => "ContainerCreating".to_string(),
                _ => String::new(),
            };
            let comes_back = match &container.state {
                State::Exited(exit) => pod_actions::restarts(if is_sidecar(spec) { RestartPolicy::Always } else { policy }, exit),
                _ => true,
            };
            let started_at = match container.state {
                State::Running { started_at } => Some(started_at),
                _ => None,
            };
            let running = started_at.is_some();
            (spec.name.clone(), ContainerView { attempt: container.attempt, running, waiting, comes_back, started_at })
        };
        self.shared.show(View {
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            driver: self.driver.clone(),
            containers: init_containers(&self.pod).iter().chain(app_containers(&self.pod)).map(view).collect(),
            ready: self.observed.sandbox == Sandbox::Ready,
            ending: self.plan.ending,
            images: self.images(),
        });
    }

    /// Digests in use: as told with the attempt, or from the image ids that an earlier agent wrote into the status.
    pub(super) fn images(&self) -> BTreeSet<String> {
        let told = self.doing.values().map(|d| d.digest.as_str());
        let kept = self.observed.containers.values().filter_map(|c| c.image_id.rsplit_once('@')).map(|(_, digest)| digest);
        told.chain(kept).filter(|d| !d.is_empty()).map(String::from).collect()
    }

    /// The pod is gone from here: its API object goes too, after its last status was written.
    pub(super) fn finish(&mut self) {
        if self.observed.removed {
            self.done = true;
            return;
        }
        if self.writing.is_some() || self.patch().is_some() || self.not_yet() {
            return;
        }
        let (client, sender) = (self.shared.config.client.clone(), self.sender.clone());
        let (namespace, name) = (meta(&self.pod.metadata.namespace).to_string(), meta(&self.pod.metadata.name).to_string());
        let options = DeleteOptions { grace_period_seconds: Some(0), uid: Some(self.uid.clone()), ..DeleteOptions::default() };
        self.writing = Some(Task::spawn(async move {
            let result = client.delete::<Pod>(&namespace, &name, &options).await;
            let _ = sender.send(Message::Deleted(result)).await;
        }));
    }

    pub(super) fn deleted(&mut self, result: Result<(), client::Error>) {
        self.writing = None;
        match result {
            Ok(()) => self.done = true,
            Err(e) if e.is_not_found() || e.is_conflict() => self.done = true,
            Err(e) => self.write_failed(&e),
        }
    }
}
