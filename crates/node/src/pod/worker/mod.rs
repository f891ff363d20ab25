//! The loop of one pod: what is known -> plan -> tasks -> status, again with each message.

mod happens;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use driver::{Driver, PodState};
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodStatus};
use plan::pod_actions::{self, Action, Observed, Plan, Sandbox, State, app_containers, init_containers};
use plan::probes::Kind;
use plan::{Reason, pod_status};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::{Message, Paths, prepare, start, stop};
use crate::agent::Shared;
use crate::limits::{STEPS_MAX, VOLUME_RESYNC, WORKER_QUEUE};
use crate::volumes;

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
}

fn meta(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Spec> {
    init_containers(pod).iter().chain(app_containers(pod)).find(|c| c.name == name)
}
