//! The planner against a machine that does what it is told: exact times, orders, and what must hold for any pod.

use super::*;
use base::Ids;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod_status::{self, Facts};

/// What a container does each time it is started; the last entry holds for all later attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Run {
    Serve,
    /// Ignores its stop signal.
    Stubborn,
    /// Exits by itself after these seconds.
    Exit(i64, i32),
    NoImage,
}

struct World {
    pod: Pod,
    observed: Observed,
    now: Timestamp,
    runs: BTreeMap<String, Vec<Run>>,
    /// When a running container exits, and how.
    exits: BTreeMap<String, (Timestamp, i32)>,
    failures: BTreeMap<String, u32>,
    log: Vec<String>,
    plan: Plan,
    finished: bool,
}

fn t0() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn spec(name: &str, sidecar: bool) -> Spec {
    Spec { name: name.into(), image: Some("img".into()), restart_policy: sidecar.then(|| "Always".into()), ..Spec::default() }
}

impl World {
    /// Names beginning with `s` in `init` are sidecars.
    fn new(policy: &str, init: &[&str], apps: &[&str], runs: &[(&str, &[Run])]) -> Self {
        let mut pod = Pod {
            spec: Some(PodSpec {
                restart_policy: Some(policy.into()),
                init_containers: Some(init.iter().map(|n| spec(n, n.starts_with('s'))).collect()),
                containers: apps.iter().map(|n| spec(n, false)).collect(),
                termination_grace_period_seconds: Some(30),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some("web".into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some("u1".into());
        Self {
            pod,
            observed: Observed { start_time: Some(t0()), ..Observed::default() },
            now: t0(),
            runs: runs.iter().map(|(n, r)| (n.to_string(), r.to_vec())).collect(),
            exits: BTreeMap::new(),
            failures: BTreeMap::new(),
            log: Vec::new(),
            plan: Plan::default(),
            finished: false,
        }
    }

    fn seconds(&self) -> i64 {
        self.now.duration_since(t0()).as_secs()
    }

    fn note(&mut self, what: &str) {
        self.log.push(format!("{} {what}", self.seconds()));
    }

    /// Plans and does until nothing is left to do at this moment.
    fn settle(&mut self) {
        for _ in 0..100 {
            let cx = Cx { now: self.now, ids: Ids::seeded(1) };
            let (plan, _) = plan(&self.pod, &self.observed, &cx);
            if plan.ending && self.observed.ending_since.is_none() {
                self.observed.ending_since = Some(self.now);
            }
            self.plan = plan.clone();
            for action in &plan.actions {
                self.act(action);
            }
            let due: Vec<String> = self.exits.iter().filter(|(_, (at, _))| *at <= self.now).map(|(n, _)| n.clone()).collect();
            for name in &due {
                self.exit(name);
            }
            if (plan.actions.is_empty() && due.is_empty()) || self.finished {
                return;
            }
        }
        panic!("the planner does not come to rest: {:?}", self.log);
    }

    fn exit(&mut self, name: &str) {
        let Some((_, code)) = self.exits.remove(name) else { return };
        self.note(&format!("exit {name} {code}"));
        let c = self.observed.containers.get_mut(name).unwrap();
        c.state = State::Exited(Exit::new(code, self.now));
        (c.stop_by, c.unhealthy, c.started, c.ready) = (None, None, false, false);
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Prepare => self.observed.sandbox = Sandbox::Ready,
            Action::Start { container, attempt, restarts } => self.start(container, *attempt, *restarts),
            Action::Stop { container, by, .. } => {
                self.note(&format!("stop {container}"));
                let run = self.run(container);
                let c = self.observed.containers.get_mut(container).unwrap();
                c.stop_by = Some(*by);
                let (at, code) = if run == Run::Stubborn { (*by, 137) } else { (self.now, 143) };
                self.exits.insert(container.clone(), (at, code));
            }
            Action::Teardown => {
                assert!(self.exits.is_empty(), "torn down while containers live: {:?}", self.log);
                (self.observed.sandbox, self.observed.clean) = (Sandbox::Absent, true);
                self.note("teardown");
            }
            Action::Finish => self.finished = true,
        }
    }

    fn run(&self, name: &str) -> Run {
        let attempt = self.observed.container(name).attempt.unwrap_or(0) as usize;
        let runs = self.runs.get(name).map(Vec::as_slice).unwrap_or(&[Run::Serve]);
        runs[attempt.min(runs.len() - 1)]
    }

    fn start(&mut self, name: &str, attempt: u32, restarts: Option<Restarts>) {
        assert_eq!(self.observed.sandbox, Sandbox::Ready);
        assert!(!self.plan.ending, "started while ending: {:?}", self.log);
        let now = self.now;
        let before = self.observed.container(name).clone();
        assert!(!before.state.alive(), "{name} started twice: {:?}", self.log);
        assert_eq!(attempt, before.next_attempt());
        let runs = self.runs.get(name).map(Vec::as_slice).unwrap_or(&[Run::Serve]).to_vec();
        let run = runs[(attempt as usize).min(runs.len() - 1)];
        let container = self.observed.containers.entry(name.to_string()).or_default();
        container.restarts = restarts;
        if run == Run::NoImage {
            let failures = self.failures.entry(name.to_string()).or_default();
            *failures += 1;
            container.state = State::Failed { waiting: Waiting::new("ErrImagePull", "gone"), failures: *failures, at: now };
            return self.note(&format!("pull {name}"));
        }
        if let State::Exited(exit) = &container.state {
            container.last = Some(exit.clone());
        }
        (container.attempt, container.state, container.stale) = (Some(attempt), State::Running { started_at: now }, false);
        (container.started, container.ready) = (true, true);
        if let Run::Exit(after, code) = run {
            self.exits.insert(name.to_string(), (now + SignedDuration::from_secs(after), code));
        }
        self.note(&format!("start {name}"));
    }

    /// Lets time pass until `seconds` after the start.
    fn until(&mut self, seconds: i64) -> &mut Self {
        let end = t0() + SignedDuration::from_secs(seconds);
        self.settle();
        while !self.finished {
            let wakes = self.exits.values().map(|(at, _)| *at).chain(self.plan.wake_at);
            let Some(next) = wakes.min().filter(|t| *t <= end) else { break };
            assert!(next > self.now, "woken at {next} without effect: {:?}", self.log);
            self.now = next;
            self.settle();
        }
        self.now = self.now.max(end.min(self.now.max(end)));
        if !self.finished {
            self.settle();
        }
        self
    }

    fn delete(&mut self, grace: i64) {
        self.pod.metadata.deletion_timestamp = Some(Time(self.now));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    fn lose(&mut self) {
        self.exits.clear();
        for c in self.observed.containers.values_mut() {
            if c.state.alive() {
                c.state = State::Exited(pod_status::lost(None, self.now));
            }
            c.stale = true;
        }
        self.observed.sandbox = Sandbox::Absent;
    }

    fn status(&self) -> k8s_openapi::api::core::v1::PodStatus {
        pod_status::status(&self.pod, &self.observed, &self.plan, &Facts::default(), self.now)
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }
}

fn starts(world: &World, name: &str) -> Vec<i64> {
    let suffix = format!(" start {name}");
    world.log.iter().filter_map(|l| l.strip_suffix(&suffix)?.parse().ok()).collect()
}

#[test]
fn init_containers_run_one_after_the_other_and_then_all_apps() {
    let mut w = World::new("Always", &["i1", "i2"], &["a", "b"], &[("i1", &[Run::Exit(3, 0)]), ("i2", &[Run::Exit(2, 0)])]);
    w.until(1);
    assert_eq!(w.phase(), "Pending");
    assert_eq!(
        w.status().container_statuses.unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("PodInitializing")
    );
    w.until(10);
    assert_eq!(w.log, ["0 start i1", "3 exit i1 0", "3 start i2", "5 exit i2 0", "5 start a", "5 start b"]);
    assert_eq!(w.phase(), "Running");
    assert!(pod_status::is_ready(&w.status()));
}

#[test]
fn crash_loops_back_off_from_ten_seconds_to_five_minutes() {
    let mut w = World::new("Always", &[], &["a"], &[("a", &[Run::Exit(0, 1)])]);
    w.until(5);
    let status = w.status();
    let state = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = state.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(waiting.message.as_deref(), Some("back-off 10s restarting failed container=a pod=web_default(u1)"));
    assert_eq!(state.restart_count, 1);
    assert_eq!(state.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    w.until(1000);
    assert_eq!(starts(&w, "a"), [0, 0, 10, 30, 70, 150, 310, 610, 910]);
    let waiting = w.status().container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.message.as_deref(), Some("back-off 5m0s restarting failed container=a pod=web_default(u1)"));
}

#[test]
fn ten_good_minutes_are_forgiven() {
    let runs = [Run::Exit(0, 1), Run::Exit(0, 1), Run::Exit(0, 1), Run::Exit(601, 1), Run::Exit(0, 1), Run::Serve];
    let mut w = World::new("Always", &[], &["a"], &[("a", &runs)]);
    w.until(2000);
    // 0, 0, 10, 30 (runs for 601 s), at once after it, and ten seconds again.
    assert_eq!(starts(&w, "a"), [0, 0, 10, 30, 631, 641]);
}

#[test]
fn restart_policies_decide_what_an_exit_means() {
    for (policy, code, phase, attempts) in [
        ("Never", 0, "Succeeded", 1),
        ("Never", 1, "Failed", 1),
        ("OnFailure", 0, "Succeeded", 1),
        ("OnFailure", 1, "Running", 4),
        ("Always", 0, "Running", 4),
    ] {
        let mut w = World::new(policy, &[], &["a"], &[("a", &[Run::Exit(0, code)])]);
        w.until(31);
        assert_eq!((w.phase().as_str(), starts(&w, "a").len()), (phase, attempts), "{policy} {code}");
    }
    // One failed container of two fails the pod, once both have ended.
    let mut w = World::new("Never", &[], &["a", "b"], &[("a", &[Run::Exit(1, 1)]), ("b", &[Run::Exit(5, 0)])]);
    assert_eq!(w.until(2).phase(), "Running");
    assert_eq!(w.until(6).phase(), "Failed");
    assert!(w.observed.clean);
}

#[test]
fn a_failed_init_container_fails_or_is_repeated() {
    let mut w = World::new("Never", &["i"], &["a"], &[("i", &[Run::Exit(1, 3)])]);
    w.until(10);
    assert_eq!(w.phase(), "Failed");
    assert!(starts(&w, "a").is_empty());
    let mut w = World::new("Always", &["i"], &["a"], &[("i", &[Run::Exit(1, 3), Run::Exit(1, 3), Run::Exit(1, 0)])]);
    w.until(60);
    assert_eq!((starts(&w, "i"), starts(&w, "a")), (vec![0, 1, 12], vec![13]));
}

#[test]
fn sidecars_start_first_and_stop_last_in_reverse() {
    let mut w = World::new("Always", &["s1", "i", "s2"], &["a"], &[("i", &[Run::Exit(2, 0)])]);
    w.until(5);
    assert_eq!(w.log, ["0 start s1", "0 start i", "2 exit i 0", "2 start s2", "2 start a"]);
    w.log.clear();
    w.delete(30);
    w.until(10);
    assert_eq!(w.log, ["5 stop a", "5 exit a 143", "5 stop s2", "5 exit s2 143", "5 stop s1", "5 exit s1 143", "5 teardown"]);
    assert!(w.finished);
}

#[test]
fn a_sidecar_gates_on_its_startup_and_is_restarted() {
    let mut w = World::new("Never", &["s"], &["a"], &[("s", &[Run::Exit(3, 1), Run::Serve]), ("a", &[Run::Exit(20, 0)])]);
    w.until(5);
    assert_eq!(starts(&w, "s"), [0, 3]);
    w.until(25);
    // The work is done: the sidecar goes, and does not count.
    assert_eq!(w.phase(), "Succeeded");
    assert!(w.observed.clean);
    let mut w = World::new("Always", &["s"], &["a"], &[]);
    w.settle();
    w.observed.containers.get_mut("s").unwrap().started = false;
    w.observed.containers.remove("a");
    w.log.clear();
    w.settle();
    assert!(w.log.is_empty());
    w.observed.containers.get_mut("s").unwrap().started = true;
    w.settle();
    assert_eq!(w.log, ["0 start a"]);
}

#[test]
fn deletion_keeps_its_grace_and_can_be_hurried() {
    let mut w = World::new("Always", &[], &["a", "b"], &[("a", &[Run::Stubborn])]);
    w.until(1);
    w.delete(30);
    w.until(10);
    assert!(!w.finished);
    // A second, shorter deletion counts from the first moment.
    w.pod.metadata.deletion_grace_period_seconds = Some(12);
    w.until(60);
    assert!(w.finished);
    assert_eq!(w.log[2..], ["1 stop a", "1 stop b", "1 exit b 143", "10 stop a", "13 exit a 137", "13 teardown"]);
}

#[test]
fn sidecars_that_are_late_get_two_seconds() {
    let mut w = World::new("Always", &["s1", "s2"], &["a"], &[("a", &[Run::Stubborn]), ("s1", &[Run::Stubborn]), ("s2", &[Run::Stubborn])]);
    w.until(1);
    w.delete(5);
    w.until(60);
    assert_eq!(w.log[3..], ["1 stop a", "6 stop s2", "6 stop s1", "6 exit a 137", "8 exit s1 137", "8 exit s2 137", "8 teardown"]);
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut w = World::new("Always", &[], &["a"], &[]);
    w.pod.spec.as_mut().unwrap().active_deadline_seconds = Some(20);
    assert_eq!(w.until(19).phase(), "Running");
    w.until(25);
    let status = w.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
    assert_eq!(status.message.as_deref(), Some("Pod was active on the node longer than the specified deadline"));
}

#[test]
fn an_image_that_cannot_be_pulled_is_asked_for_less_and_less() {
    let mut w = World::new("Always", &[], &["a"], &[("a", &[Run::NoImage])]);
    w.until(0);
    let reason = |w: &World| w.status().container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(reason(&w).reason.as_deref(), Some("ErrImagePull"));
    w.until(3);
    assert_eq!(reason(&w).reason.as_deref(), Some("ImagePullBackOff"));
    assert_eq!(reason(&w).message.as_deref(), Some("Back-off pulling image \"img\": ErrImagePull: gone"));
    assert_eq!(w.phase(), "Pending");
    w.until(200);
    let pulls: Vec<i64> = w.log.iter().filter_map(|l| l.strip_suffix(" pull a")?.parse().ok()).collect();
    assert_eq!(pulls, [0, 10, 30, 70, 150]);
}

#[test]
fn a_lost_sandbox_is_made_again_with_its_init_containers() {
    let mut w = World::new("Always", &["i"], &["a"], &[("i", &[Run::Exit(1, 0)])]);
    w.until(5);
    w.log.clear();
    w.lose();
    w.until(20);
    assert_eq!(w.log, ["5 start i", "6 exit i 0", "6 start a"]);
    assert_eq!(w.observed.container("a").attempt, Some(1));
    // What must run only once has failed instead.
    let mut w = World::new("Never", &[], &["a"], &[]);
    w.until(5);
    w.lose();
    w.until(6);
    assert_eq!((w.phase().as_str(), starts(&w, "a").len()), ("Failed", 1));
}

#[test]
fn a_sick_container_is_restarted() {
    let mut w = World::new("Always", &[], &["a"], &[]);
    w.until(3);
    w.observed.containers.get_mut("a").unwrap().unhealthy = Some(Unhealthy { probe: Some(crate::probes::Kind::Liveness), grace: None });
    let (_, told) = plan(&w.pod, &w.observed, &Cx { now: w.now, ids: Ids::seeded(1) });
    assert_eq!(told[0].reason.message, "Container a failed liveness probe, will be restarted");
    w.until(20);
    assert_eq!(w.log, ["0 start a", "3 stop a", "3 exit a 143", "3 start a"]);
}

#[test]
fn what_has_ended_never_runs_again() {
    let mut w = World::new("Always", &[], &["a"], &[]);
    w.pod.status =
        Some(k8s_openapi::api::core::v1::PodStatus { phase: Some("Failed".into()), reason: Some("Evicted".into()), ..Default::default() });
    w.until(10);
    assert_eq!(w.log, ["0 teardown"]);
    let status = w.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}

/// Any pod, any behaviour, deleted at any moment.
#[test]
fn whatever_happens_the_order_holds_and_deletion_ends() {
    for seed in 0..400u64 {
        let ids = Ids::seeded(seed);
        let pick = |n: u64| ids.next_u64() % n;
        let policy = ["Always", "OnFailure", "Never"][pick(3) as usize];
        let init: Vec<&str> = [["i1", "s1", "i2", "s2"].as_slice(), &["i1", "i2"], &["s1"], &[]][pick(4) as usize].to_vec();
        let apps = if pick(2) == 0 { vec!["a"] } else { vec!["a", "b"] };
        let run =
            || [Run::Serve, Run::Stubborn, Run::Exit(0, 0), Run::Exit(3, 1), Run::Exit(40, 0), Run::NoImage][ids.next_u64() as usize % 6];
        let runs: Vec<(&str, Vec<Run>)> = init.iter().chain(&apps).map(|n| (*n, vec![run(), run(), run()])).collect();
        let borrowed: Vec<(&str, &[Run])> = runs.iter().map(|(n, r)| (*n, r.as_slice())).collect();
        let mut w = World::new(policy, &init, &apps, &borrowed);
        let lost_at = (ids.next_u64() % 100) as i64;
        w.until(lost_at);
        if ids.next_u64().is_multiple_of(3) && w.observed.sandbox == Sandbox::Ready {
            w.lose();
        }
        w.until(lost_at + (ids.next_u64() % 200) as i64);
        // No app has run before every plain init container succeeded.
        let first_app = w.log.iter().position(|l| l.ends_with("start a") || l.ends_with("start b"));
        if let Some(at) = first_app {
            for name in init.iter().filter(|n| n.starts_with('i')) {
                assert!(w.log[..at].iter().any(|l| l.ends_with(&format!("exit {name} 0"))), "seed {seed}: {:?}", w.log);
            }
        }
        let ended = matches!(w.phase().as_str(), "Succeeded" | "Failed");
        assert!(!ended || policy != "Always", "seed {seed}: {:?}", w.log);
        let grace = (ids.next_u64() % 20) as i64;
        let at = w.seconds();
        w.delete(grace);
        w.until(at + grace.max(1) + 4);
        assert!(w.finished, "seed {seed}: {:?}", w.log);
        assert!(matches!(w.phase().as_str(), "Succeeded" | "Failed"));
    }
}
