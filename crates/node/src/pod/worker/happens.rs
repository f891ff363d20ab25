//! What a worker is told, and what it finds at its start: the only place where what is known of a pod changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use driver::{ContainerState, PodState};
use k8s_openapi::api::core::v1::Pod;
use plan::Reason;
use plan::pod_actions::{self, Exit, Sandbox, State, Unhealthy, Waiting, init_containers, is_sidecar};
use plan::pod_status;
use plan::probes::Kind;

use super::super::{Message, Paths, PodCx};
use super::{Task, Worker, meta, spec_of};
use crate::{probe, termination};

impl Worker {
    /// Takes over what runs already, with its restart counts and readiness.
    pub(super) fn adopt(&mut self, state: &PodState) {
        self.observed.sandbox = Sandbox::Ready;
        let now = self.now();
        let status = self.pod.status.clone().unwrap_or_default();
        let known = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let known: BTreeMap<&str, (bool, bool)> = known.map(|s| (s.name.as_str(), (s.started.unwrap_or(false), s.ready))).collect();
        for ContainerState { name, attempt, state } in &state.containers {
            let container = self.observed.containers.entry(name.clone()).or_default();
            if container.attempt.is_some_and(|n| n > *attempt) && !container.stale {
                continue;
            }
            if container.attempt != Some(*attempt)
                && let State::Exited(exit) = &container.state
            {
                container.last = Some(exit.clone());
            }
            container.attempt = Some(*attempt);
            container.stale = false;
            if *attempt > 0 && container.restarts.is_none() {
                container.restarts = Some(pod_actions::Restarts { count: *attempt, at: now });
            }
            match state {
                driver::State::Created => {
                    let waiting = Waiting::new("CreateContainerError", "the agent was restarted");
                    container.state = State::Failed { waiting, failures: 0, at: Timestamp::UNIX_EPOCH };
                }
                driver::State::Running { started_at_ms, .. } => {
                    container.state = State::Running { started_at: millis(*started_at_ms, now) };
                    (container.started, container.ready) = known.get(name.as_str()).copied().unwrap_or_default();
                }
                driver::State::Exited(exit) => container.state = State::Exited(exited(exit, now)),
            }
        }
    }

    /// Probes of containers that ran before this agent did.
    pub(super) fn resume(&mut self) {
        let running: Vec<(String, u32)> = self
            .observed
            .containers
            .iter()
            .filter(|(_, c)| matches!(c.state, State::Running { .. }))
            .filter_map(|(name, c)| c.attempt.map(|n| (name.clone(), n)))
            .collect();
        for (name, attempt) in running {
            self.doing.entry(name.clone()).or_default().created = true;
            self.begun(&name, attempt);
        }
    }

    pub(super) async fn find_driver(&mut self) -> Result<(), String> {
        let class = self.pod.spec.as_ref().and_then(|s| s.runtime_class_name.clone());
        self.driver = Some(self.shared.driver_for(class.as_deref()).await?);
        Ok(())
    }

    pub(super) fn cx(&self) -> Option<PodCx> {
        Some(PodCx {
            shared: self.shared.clone(),
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            driver: self.driver.clone()?,
            addresses: self.addresses.clone(),
            inbox: self.sender.clone(),
        })
    }

    pub(super) fn take_pod(&mut self) {
        let newest = self.pods.borrow_and_update().clone();
        match newest {
            None => self.observed.removed = true,
            Some(pod) => {
                let labels_changed =
                    pod.metadata.labels != self.pod.metadata.labels || pod.metadata.annotations != self.pod.metadata.annotations;
                self.newer(pod);
                self.refresh_again |= labels_changed;
            }
        }
    }

    /// Keeps the newest of what the watch and our own writes showed.
    pub(super) fn newer(&mut self, pod: Arc<Pod>) {
        let revision = |p: &Pod| p.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        if revision(&pod) >= revision(&self.pod) {
            self.pod = pod;
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Container(state) => self.container_changed(state),
            Message::Lost => self.lost(),
            Message::Prepared(result) => self.prepared(result),
            Message::TornDown(result) => self.torn_down(result),
            Message::Created { container, attempt, image_id, digest, stop_signal } => {
                let doing = self.doing.entry(container.clone()).or_default();
                (doing.created, doing.digest, doing.stop_signal) = (true, digest, stop_signal);
                let container = self.observed.containers.entry(container).or_default();
                (container.attempt, container.image_id, container.stale) = (Some(attempt), image_id, false);
            }
            Message::Started { container, attempt } => {
                if self.is_current(&container, attempt) {
                    if let State::Starting { .. } = self.observed.container(&container).state {
                        let now = self.now();
                        self.set_running(&container, now);
                    }
                    self.begun(&container, attempt);
                }
            }
            Message::NotMade { container, waiting } => self.not_made(&container, waiting),
            Message::NotStarted { container, attempt, error } => self.not_started(&container, attempt, error),
            Message::HookFailed { container, attempt } => self.sicken(&container, attempt, Unhealthy { probe: None, grace: None }),
            Message::Verdict { container, attempt, kind, value } => self.verdict(&container, attempt, kind, value),
            Message::End(terminal) => {
                if self.observed.terminal.is_none() {
                    self.observed.terminal = Some(terminal);
                }
            }
            Message::Refresh => {
                self.refresh_again = true;
                self.retry_now();
            }
            Message::Refreshed => self.refresh = None,
            Message::StatusWritten(result) => self.status_written(result),
            Message::Deleted(result) => self.deleted(result),
        }
    }

    /// What waits for its configuration may have got it.
    fn retry_now(&mut self) {
        if let Sandbox::Failed { at, .. } = &mut self.observed.sandbox {
            *at = Timestamp::UNIX_EPOCH;
        }
        for container in self.observed.containers.values_mut() {
            if let State::Failed { waiting, at, .. } = &mut container.state
                && waiting.reason == "CreateContainerConfigError"
            {
                *at = Timestamp::UNIX_EPOCH;
            }
        }
    }

    /// Whether a report is about the attempt that is made and has not ended: while the next one is being started, late
    /// words about the one before must not touch it.
    fn is_current(&self, name: &str, attempt: u32) -> bool {
        let known = self.observed.container(name);
        let created = self.doing.get(name).is_some_and(|d| d.created);
        created && known.attempt == Some(attempt) && known.state.alive()
    }

    fn container_changed(&mut self, change: ContainerState) {
        if !self.is_current(&change.name, change.attempt) {
            return;
        }
        let now = self.now();
        match change.state {
            driver::State::Created => {}
            driver::State::Running { started_at_ms, .. } => self.set_running(&change.name, millis(started_at_ms, now)),
            driver::State::Exited(exit) => self.ended(&change.name, change.attempt, exited(&exit, now)),
        }
    }

    fn set_running(&mut self, name: &str, started_at: Timestamp) {
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if !matches!(container.state, State::Running { .. }) {
            container.state = State::Running { started_at };
            // A stop that was asked for while it was being started.
            if let Some(by) = container.stop_by.take() {
                self.stop(name, by, false);
            }
        }
    }

    fn ended(&mut self, name: &str, attempt: u32, mut exit: Exit) {
        let spec = spec_of(&self.pod, name).cloned();
        if let Some(spec) = spec {
            let paths = Paths::new(&self.shared, &self.uid, meta(&self.pod.metadata.namespace), meta(&self.pod.metadata.name));
            if exit.message.is_empty() {
                exit.message = termination::message(&paths, &spec, attempt, exit.code);
            }
        }
        let doing = self.doing.entry(name.to_string()).or_default();
        (doing.start, doing.stop, doing.failures) = (None, None, 0);
        doing.probes.clear();
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if let State::Running { started_at } = container.state {
            exit.started_at = exit.started_at.or(Some(started_at));
        }
        container.state = State::Exited(exit);
        (container.started, container.ready, container.unhealthy, container.stop_by) = (false, false, None, None);
    }

    fn lost(&mut self) {
        if self.observed.sandbox != Sandbox::Ready {
            return;
        }
        let now = self.now();
        let names: Vec<(String, u32)> =
            self.observed.containers.iter().filter(|(_, c)| c.state.alive()).map(|(n, c)| (n.clone(), c.attempt.unwrap_or(0))).collect();
        for (name, attempt) in names {
            self.ended(&name, attempt, pod_status::lost(None, now));
        }
        self.observed.containers.values_mut().for_each(|c| c.stale = true);
        self.observed.sandbox = Sandbox::Absent;
        self.sandbox_lost = true;
        self.tell(&Reason::normal("SandboxChanged", "Pod sandbox changed, it will be killed and re-created."), None);
    }

    fn prepared(&mut self, result: Result<Vec<IpAddr>, String>) {
        self.sandbox = None;
        match result {
            Ok(addresses) => {
                self.addresses = addresses;
                self.observed.sandbox = Sandbox::Ready;
                self.sandbox_lost = false;
                self.doing.entry(String::new()).or_default().failures = 0;
            }
            Err(_) => self.observed.sandbox = Sandbox::Failed { failures: self.one_more_failure(), at: self.now() },
        }
    }

    fn torn_down(&mut self, result: Result<(), String>) {
        self.sandbox = None;
        match result {
            Ok(()) => (self.observed.sandbox, self.observed.clean) = (Sandbox::Absent, true),
            Err(why) => {
                tracing::warn!(pod = self.uid, "teardown failed: {why}");
                self.tell(&Reason::warning("FailedKillPod", format!("error killing pod: {why}")), None);
                self.observed.sandbox = Sandbox::Stuck { failures: self.one_more_failure(), at: self.now() };
            }
        }
    }

    /// Failures in a row of the sandbox itself are counted under the empty name.
    pub(super) fn one_more_failure(&mut self) -> u32 {
        let doing = self.doing.entry(String::new()).or_default();
        doing.failures += 1;
        doing.failures
    }

    fn not_made(&mut self, name: &str, waiting: Waiting) {
        let now = self.now();
        let doing = self.doing.entry(name.to_string()).or_default();
        doing.start = None;
        doing.failures += 1;
        let failures = doing.failures;
        let container = self.observed.containers.entry(name.to_string()).or_default();
        container.state = State::Failed { waiting, failures, at: now };
        container.stop_by = None;
    }

    fn not_started(&mut self, name: &str, attempt: u32, error: String) {
        if self.is_current(name, attempt) {
            let exit = Exit { reason: "StartError".into(), message: error, ..Exit::new(128, self.now()) };
            self.ended(name, attempt, exit);
            return;
        }
        // The driver told the exit first, and not why.
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if let State::Exited(exit) = &mut container.state
            && container.attempt == Some(attempt)
            && exit.message.is_empty()
        {
            (exit.reason, exit.message) = ("StartError".into(), error);
        }
    }

    /// An attempt runs: its probes begin.
    fn begun(&mut self, name: &str, attempt: u32) {
        let doing = self.doing.entry(name.to_string()).or_default();
        (doing.start, doing.failures) = (None, 0);
        let Some(spec) = spec_of(&self.pod, name) else { return };
        let init = init_containers(&self.pod).iter().any(|c| c.name == name) && !is_sidecar(spec);
        let (startup, readiness) = (spec.startup_probe.is_some() && !init, spec.readiness_probe.is_some() && !init);
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if !startup {
            container.started = true;
        }
        if !readiness {
            container.ready = true;
        }
        if !init {
            if startup && !container.started {
                self.probe(name, attempt, Kind::Startup);
            } else {
                self.probe(name, attempt, Kind::Liveness);
                self.probe(name, attempt, Kind::Readiness);
            }
        }
    }

    fn probe(&mut self, name: &str, attempt: u32, kind: Kind) {
        let (Some(cx), Some(spec)) = (self.cx(), spec_of(&self.pod, name)) else { return };
        let container = self.observed.container(name);
        let State::Running { started_at } = container.state else { return };
        let verdict = match kind {
            Kind::Startup => None,
            Kind::Liveness => Some(true),
            Kind::Readiness => Some(container.ready),
        };
        if let Some(task) = probe::task(cx, spec, attempt, kind, started_at, verdict) {
            self.doing.entry(name.to_string()).or_default().probes.insert(kind, Task::spawn(task));
        }
    }

    fn verdict(&mut self, name: &str, attempt: u32, kind: Kind, value: bool) {
        if !self.is_current(name, attempt) {
            return;
        }
        let known = self.observed.containers.entry(name.to_string()).or_default();
        match (kind, value) {
            (Kind::Readiness, ready) => known.ready = ready,
            (Kind::Startup, true) => {
                known.started = true;
                self.probe(name, attempt, Kind::Liveness);
                self.probe(name, attempt, Kind::Readiness);
            }
            (Kind::Liveness, true) => {}
            (Kind::Startup | Kind::Liveness, false) => {
                let spec = spec_of(&self.pod, name);
                let probe = spec.and_then(|s| if kind == Kind::Startup { s.startup_probe.as_ref() } else { s.liveness_probe.as_ref() });
                let grace = probe.and_then(|p| p.termination_grace_period_seconds).map(jiff::SignedDuration::from_secs);
                self.sicken(name, attempt, Unhealthy { probe: Some(kind), grace });
            }
        }
    }

    fn sicken(&mut self, name: &str, attempt: u32, why: Unhealthy) {
        if self.is_current(name, attempt) {
            self.observed.containers.entry(name.to_string()).or_default().unhealthy = Some(why);
        }
    }
}

fn millis(ms: i64, default: Timestamp) -> Timestamp {
    if ms == 0 { default } else { Timestamp::from_millisecond(ms).unwrap_or(default) }
}

fn exited(exit: &driver::Exit, now: Timestamp) -> Exit {
    let finished = millis(exit.finished_at_ms, now);
    let started = (exit.started_at_ms > 0).then(|| millis(exit.started_at_ms, finished));
    let mut out = Exit { started_at: started, ..Exit::new(exit.code, finished) };
    if exit.oom_killed {
        out.reason = "OOMKilled".into();
    } else if !exit.error.is_empty() {
        // What has run and then is explained was lost with its shim.
        let reason = if exit.started_at_ms > 0 { "ContainerStatusUnknown" } else { "StartError" };
        (out.reason, out.message) = (reason.into(), exit.error.clone());
        out.code = if exit.code == 0 { 128 } else { exit.code };
    }
    out
}
