//! The loop of one pod: what is known -> plan -> tasks -> status, again with each message.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use client::{DeleteOptions, Patch};
use driver::{ContainerState, Driver, PodState};
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodStatus};
use plan::pod_actions::{
    self, Action, Container, Exit, Observed, Plan, RestartPolicy, Sandbox, State, Told, Unhealthy, Waiting, app_containers,
    init_containers, is_sidecar,
};
use plan::pod_status::{self, Facts};
use plan::probes::Kind;
use plan::{Reason, Severity};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::{Message, Paths, PodCx, about, prepare, start, stop};
use crate::agent::{ContainerView, Shared, View};
use crate::limits::{STEPS_MAX, VOLUME_RESYNC, WORKER_QUEUE, WRITE_BACKOFF};
use crate::{probe, status_patch, termination, volumes};

/// What was found of a pod on this machine when the agent started.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub state: Option<PodState>,
    pub addresses: Vec<IpAddr>,
}

/// Ends a task when it is dropped.
struct Task(AbortHandle);

impl Task {
    fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is under way for one container.
#[derive(Default)]
struct Doing {
    start: Option<Task>,
    stop: Option<(Task, watch::Sender<Timestamp>)>,
    probes: BTreeMap<Kind, Task>,
    /// The driver has made the newest attempt.
    created: bool,
    failures: u32,
    stop_signal: i32,
    digest: String,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: String,
    pod: Arc<Pod>,
    pods: watch::Receiver<Option<Arc<Pod>>>,
    inbox: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    driver: Option<Arc<dyn Driver>>,
    observed: Observed,
    plan: Plan,
    doing: BTreeMap<String, Doing>,
    addresses: Vec<IpAddr>,
    /// Preparing, tearing down; one at a time.
    sandbox: Option<Task>,
    sandbox_lost: bool,
    refresh: Option<Task>,
    refresh_again: bool,
    refresh_at: tokio::time::Instant,
    told: BTreeSet<(String, &'static str, String)>,
    /// The last status computed: its times hold until it is written.
    shown: Option<PodStatus>,
    writing: Option<Task>,
    write_failures: u32,
    write_at: tokio::time::Instant,
    done: bool,
}

/// How a worker is reached.
pub(crate) struct Handle {
    pub pods: watch::Sender<Option<Arc<Pod>>>,
    pub inbox: mpsc::Sender<Message>,
}

impl Worker {
    /// A worker and its handle; `run` it in a task of its own.
    pub fn new(shared: Arc<Shared>, pod: Arc<Pod>, recovered: Recovered) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(WORKER_QUEUE);
        let (pods_tx, pods) = watch::channel(Some(pod.clone()));
        let now = shared.config.clock.now();
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let mut observed = Observed { start_time: Some(start_time.unwrap_or(now)), ..Observed::default() };
        observed.containers.extend(pod_status::remembered(&pod, now));
        let mut worker = Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            pod,
            pods,
            inbox,
            sender: sender.clone(),
            driver: None,
            observed,
            plan: Plan::default(),
            doing: BTreeMap::new(),
            addresses: recovered.addresses,
            sandbox: None,
            sandbox_lost: false,
            refresh: None,
            refresh_again: false,
            refresh_at: tokio::time::Instant::now() + VOLUME_RESYNC,
            told: BTreeSet::new(),
            shown: None,
            writing: None,
            write_failures: 0,
            write_at: tokio::time::Instant::now(),
            done: false,
            shared,
        };
        if let Some(state) = recovered.state {
            worker.adopt(&state);
        }
        (worker, Handle { pods: pods_tx, inbox: sender })
    }

    /// Until nothing of the pod is left here. True when it is deleted in the API, too, as far as that is ours to do.
    pub async fn run(mut self) -> bool {
        // One that cannot be found is told when the pod is to be made.
        let _ = self.find_driver().await;
        self.resume();
        if self.observed.sandbox == Sandbox::Ready {
            self.shared.lookup.watch(&self.uid, &self.pod);
        }
        while !self.done {
            self.step().await;
            if self.done {
                break;
            }
            self.wait().await;
            // All that has come meanwhile is one step: a plan looks at the whole.
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
        }
        self.shared.lookup.unwatch(&self.uid);
        !self.observed.removed
    }

    async fn wait(&mut self) {
        let wake = self.wake_at();
        tokio::select! {
            biased;
            message = self.inbox.recv() => if let Some(message) = message { self.take(message) },
            changed = self.pods.changed() => if changed.is_ok() { self.take_pod() } else { self.done = true },
            () = tokio::time::sleep_until(wake) => {}
        }
    }

    fn wake_at(&self) -> tokio::time::Instant {
        let now = self.now();
        let mut wake = self.refresh_at;
        if let Some(at) = self.plan.wake_at {
            let wait = at.duration_since(now).max(jiff::SignedDuration::ZERO);
            // One millisecond more: the plan must find the time reached.
            wake = wake.min(tokio::time::Instant::now() + wait.unsigned_abs() + std::time::Duration::from_millis(1));
        }
        if self.write_failures > 0 && self.writing.is_none() {
            wake = wake.min(self.write_at);
        }
        wake
    }

    fn now(&self) -> Timestamp {
        self.shared.config.clock.now()
    }

    // ---- recovery --------------------------------------------------------------------------------------------------

    /// Takes over what runs already, with its restart counts and readiness.
    fn adopt(&mut self, state: &PodState) {
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
    fn resume(&mut self) {
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

    async fn find_driver(&mut self) -> Result<(), String> {
        let class = self.pod.spec.as_ref().and_then(|s| s.runtime_class_name.clone());
        self.driver = Some(self.shared.driver_for(class.as_deref()).await?);
        Ok(())
    }

    fn cx(&self) -> Option<PodCx> {
        Some(PodCx {
            shared: self.shared.clone(),
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            driver: self.driver.clone()?,
            addresses: self.addresses.clone(),
            inbox: self.sender.clone(),
        })
    }

    // ---- what happens ----------------------------------------------------------------------------------------------

    fn take_pod(&mut self) {
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
    fn newer(&mut self, pod: Arc<Pod>) {
        let revision = |p: &Pod| p.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        if revision(&pod) >= revision(&self.pod) {
            self.pod = pod;
        }
    }

    fn take(&mut self, message: Message) {
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
                let known = self.observed.container(&container);
                if known.attempt == Some(attempt) && known.state.alive() {
                    if let State::Starting { .. } = known.state {
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

    fn container_changed(&mut self, change: ContainerState) {
        let known = self.observed.container(&change.name);
        if known.attempt != Some(change.attempt) || !known.state.alive() {
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
    fn one_more_failure(&mut self) -> u32 {
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
        let now = self.now();
        let known = self.observed.container(name);
        if known.attempt == Some(attempt) && !matches!(known.state, State::Exited(_)) {
            let exit = Exit { reason: "StartError".into(), message: error, ..Exit::new(128, now) };
            self.ended(name, attempt, exit);
        } else if let Some(Container { state: State::Exited(exit), .. }) = self.observed.containers.get_mut(name) {
            // The driver told the exit first; it knows the code, we know why.
            (exit.reason, exit.code) = ("StartError".into(), if exit.code == 0 { 128 } else { exit.code });
            if exit.message.is_empty() {
                exit.message = error;
            }
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
        let known = self.observed.containers.entry(name.to_string()).or_default();
        if known.attempt != Some(attempt) || !matches!(known.state, State::Running { .. }) {
            return;
        }
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
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if container.attempt == Some(attempt) && container.state.alive() {
            container.unhealthy = Some(why);
        }
    }

    // ---- plan and do -----------------------------------------------------------------------------------------------

    async fn step(&mut self) {
        // What an action changes at once (an attempt given up) is planned for at once.
        for _ in 0..STEPS_MAX {
            let before = self.observed.clone();
            self.plan_and_act().await;
            if self.observed == before {
                break;
            }
        }
        self.refresh_volumes();
        self.publish();
        self.show();
    }

    async fn plan_and_act(&mut self) {
        let cx = plan::Cx { now: self.now(), ids: self.shared.config.ids.clone() };
        let (plan, reasons) = pod_actions::plan(&self.pod, &self.observed, &cx);
        if plan.ending && self.observed.ending_since.is_none() {
            self.observed.ending_since = Some(cx.now);
            self.quiet_probes();
        }
        self.tell_new(&reasons);
        self.plan = plan;
        for action in self.plan.actions.clone() {
            if action == Action::Prepare && self.driver.is_none() && !self.has_driver().await {
                continue;
            }
            self.act(action);
        }
    }

    /// What others may know of this pod.
    fn show(&self) {
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

    /// The RuntimeClass may have come meanwhile; if not, the pod waits as for any other part of its sandbox.
    async fn has_driver(&mut self) -> bool {
        let Err(why) = self.find_driver().await else { return true };
        self.tell(&Reason::warning("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}")), None);
        let failures = self.one_more_failure();
        self.observed.sandbox = Sandbox::Failed { failures, at: self.now() };
        let again = self.now() + jiff::SignedDuration::from_secs(1);
        self.plan.wake_at = Some(self.plan.wake_at.map_or(again, |t| t.min(again)));
        false
    }

    /// A pod that ends is not judged any more, only its readiness is still told.
    fn quiet_probes(&mut self) {
        for doing in self.doing.values_mut() {
            doing.probes.retain(|kind, _| *kind == Kind::Readiness);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Prepare => {
                let Some(cx) = self.cx() else { return };
                self.shared.lookup.watch(&self.uid, &self.pod);
                self.observed.sandbox = Sandbox::Creating;
                let lost = std::mem::take(&mut self.sandbox_lost);
                self.sandbox = Some(Task::spawn(async move {
                    let result = prepare::prepare(&cx, lost).await;
                    cx.send(Message::Prepared(result)).await;
                }));
            }
            Action::Start { container, attempt, restarts } => self.start(&container, attempt, restarts),
            Action::Stop { container, by, hook } => self.stop(&container, by, hook),
            Action::Teardown => self.tear_down(),
            Action::Finish => self.finish(),
        }
    }

    fn start(&mut self, name: &str, attempt: u32, restarts: Option<pod_actions::Restarts>) {
        let (Some(cx), Some(spec)) = (self.cx(), spec_of(&self.pod, name).cloned()) else { return };
        let shown = match &self.observed.container(name).state {
            State::Failed { waiting, .. } => Some(self.plan.waiting.get(name).unwrap_or(waiting).clone()),
            State::Starting { shown } => shown.clone(),
            _ => None,
        };
        let doing = self.doing.entry(name.to_string()).or_default();
        doing.created = false;
        let container = self.observed.containers.entry(name.to_string()).or_default();
        if let State::Exited(exit) = &container.state {
            container.last = Some(exit.clone());
        }
        container.state = State::Starting { shown };
        container.restarts = restarts;
        (container.started, container.ready, container.unhealthy, container.stop_by) = (false, false, None, None);
        doing.start = Some(Task::spawn(start::start(cx, spec, attempt)));
    }

    fn stop(&mut self, name: &str, by: Timestamp, hook: bool) {
        let (Some(cx), Some(spec)) = (self.cx(), spec_of(&self.pod, name).cloned()) else { return };
        let doing = self.doing.entry(name.to_string()).or_default();
        let container = self.observed.containers.entry(name.to_string()).or_default();
        container.stop_by = Some(by);
        if let State::Starting { .. } = container.state {
            if !doing.created {
                // Nothing runs yet: the attempt is given up.
                doing.start = None;
                container.stop_by = None;
                container.state = container.last.clone().map_or(State::Absent, State::Exited);
            }
            return;
        }
        match &doing.stop {
            Some((_, deadline)) => {
                deadline.send_replace(by);
            }
            None => {
                doing.start = None;
                let (tx, rx) = watch::channel(by);
                let signal = if doing.stop_signal > 0 { doing.stop_signal } else { libc::SIGTERM };
                doing.stop = Some((Task::spawn(stop::stop(cx, spec, hook, signal, rx)), tx));
            }
        }
    }

    fn tear_down(&mut self) {
        for doing in self.doing.values_mut() {
            doing.start = None;
            doing.stop = None;
            doing.probes.clear();
        }
        (self.refresh, self.refresh_again) = (None, false);
        self.shared.lookup.unwatch(&self.uid);
        let (shared, driver, uid) = (self.shared.clone(), self.driver.clone(), self.uid.clone());
        let paths = Paths::new(&self.shared, &uid, meta(&self.pod.metadata.namespace), meta(&self.pod.metadata.name));
        let (inbox, hosted) = (self.sender.clone(), self.pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)));
        self.observed.sandbox = Sandbox::Removing;
        self.sandbox = Some(Task::spawn(async move {
            let result = prepare::tear_down(&shared, driver.as_deref(), &uid, &paths, hosted).await;
            // The worker waits for it as long as it lives.
            let _ = inbox.send(Message::TornDown(result)).await;
        }));
    }

    /// The pod is gone from here: its API object goes too, after its last status was written.
    fn finish(&mut self) {
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

    fn deleted(&mut self, result: Result<(), client::Error>) {
        self.writing = None;
        match result {
            Ok(()) => self.done = true,
            Err(e) if e.is_not_found() || e.is_conflict() => self.done = true,
            Err(e) => self.write_failed(&e),
        }
    }

    fn refresh_volumes(&mut self) {
        let due = tokio::time::Instant::now() >= self.refresh_at;
        if (!due && !self.refresh_again) || self.refresh.is_some() {
            return;
        }
        self.refresh_at = tokio::time::Instant::now() + VOLUME_RESYNC;
        self.refresh_again = false;
        if self.observed.sandbox != Sandbox::Ready || self.plan.ending {
            return;
        }
        let Some(cx) = self.cx() else { return };
        self.refresh = Some(Task::spawn(async move {
            if let Err(why) = volumes::refresh(&cx).await {
                tracing::debug!(pod = cx.uid, "volumes not refreshed: {why}");
            }
            cx.send(Message::Refreshed).await;
        }));
    }

    /// Digests in use: as told with the attempt, or from the image ids that an earlier agent wrote into the status.
    fn images(&self) -> BTreeSet<String> {
        let told = self.doing.values().map(|d| d.digest.as_str());
        let kept = self.observed.containers.values().filter_map(|c| c.image_id.rsplit_once('@')).map(|(_, digest)| digest);
        told.chain(kept).filter(|d| !d.is_empty()).map(String::from).collect()
    }

    // ---- telling ---------------------------------------------------------------------------------------------------

    /// Each reason is an event once, until it goes away and comes back.
    fn tell_new(&mut self, reasons: &[Told]) {
        let key = |t: &Told| (t.container.clone(), t.reason.code, t.reason.message.clone());
        for told in reasons {
            if !self.told.contains(&key(told)) {
                self.tell(&told.reason, Some(&told.container));
            }
        }
        self.told = reasons.iter().map(key).collect();
    }

    fn tell(&self, reason: &Reason, container: Option<&str>) {
        let about = about(&self.pod, container);
        match reason.severity {
            Severity::Normal => self.shared.recorder.normal(&about, reason.code, reason.message.clone()),
            Severity::Warning => self.shared.recorder.warning(&about, reason.code, reason.message.clone()),
        }
    }

    fn facts(&self) -> Facts {
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
    fn patch(&mut self) -> Option<serde_json::Value> {
        let mut status = pod_status::status(&self.pod, &self.observed, &self.plan, &self.facts(), self.now());
        status_patch::keep_times(&mut status, self.shown.as_ref());
        let patch = status_patch::patch(self.pod.status.as_ref(), &status, &self.uid);
        self.shown = Some(status);
        patch
    }

    fn not_yet(&self) -> bool {
        self.write_failures > 0 && tokio::time::Instant::now() < self.write_at
    }

    fn publish(&mut self) {
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

    fn status_written(&mut self, result: Result<Box<Pod>, client::Error>) {
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
}

fn meta(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Spec> {
    init_containers(pod).iter().chain(app_containers(pod)).find(|c| c.name == name)
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
