//! The world of one Deployment: an API with preconditions, controllers that read stale caches, pods that take their time.

use std::collections::{BTreeMap, BTreeSet};

use base::{Ids, Timestamp};
use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::action::{Object, patched};
use crate::conditions::{self, Condition};
use crate::{Action, Cx, Plan, invariants, objects, replicas, rollout};

type Objects<K> = BTreeMap<String, K>;

/// What a controller believes.
#[derive(Clone, Default)]
struct View {
    deployment: Option<Deployment>,
    sets: Objects<ReplicaSet>,
    pods: Objects<Pod>,
}

/// What a run may contain beside rolling updates.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Nothing fails and the replicas stay: both bounds hold at every step.
    Calm,
    /// `Recreate`: no two templates run at once.
    Recreate,
    /// Pods fail, users scale, pause and change the strategy: it converges afterwards.
    Wild,
}

struct World {
    truth: View,
    rollout_view: View,
    replicas_view: View,
    revision: u64,
    now: Timestamp,
    ids: Ids,
    mode: Mode,
    /// The rollout bounds count from the first time all was ready.
    settled_once: bool,
    /// Most pods allowed by any spec since the last calm.
    most: i32,
}

struct Refused;

impl World {
    fn new(seed: u64, mode: Mode) -> Self {
        let ids = Ids::seeded(seed);
        let mut world = World {
            truth: View::default(),
            rollout_view: View::default(),
            replicas_view: View::default(),
            revision: 0,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            ids,
            mode,
            settled_once: false,
            most: 0,
        };
        let strategy = if mode == Mode::Recreate {
            json!({"type": "Recreate"})
        } else {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": world.amount(), "maxUnavailable": world.amount()}})
        };
        let d = json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"replicas": world.pick(12), "minReadySeconds": world.pick(2) * 5, "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": world.pick(4), "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v0"}]}}}});
        let mut d: Deployment = serde_json::from_value(d).unwrap();
        world.stamp(&mut d);
        d.metadata.generation = Some(1);
        world.truth.deployment = Some(d);
        world
    }

    fn pick(&self, n: u64) -> u64 {
        self.ids.next_u64() % n
    }

    fn amount(&self) -> Value {
        if self.pick(2) == 0 { json!(self.pick(4)) } else { json!(format!("{}%", self.pick(5) * 25)) }
    }

    fn deployment(&self) -> &Deployment {
        self.truth.deployment.as_ref().unwrap()
    }

    fn stamp<K: Object>(&mut self, object: &mut K) {
        self.revision += 1;
        let meta = object.metadata_mut();
        meta.resource_version = Some(self.revision.to_string());
        meta.uid.get_or_insert_with(|| self.ids.uid());
        meta.creation_timestamp.get_or_insert(Time(self.now));
    }

    // ---- the API -------------------------------------------------------------------------------------------------------

    /// Applies a plan as the applier does: waves in order, stop at the first refusal, own writes carry the revision on.
    fn apply(&mut self, plan: &Plan) -> Result<(), Refused> {
        let mut own: BTreeMap<String, String> = BTreeMap::new();
        for step in plan.steps() {
            let mut action = step.action.clone();
            if let Action::Patch { target, patch, .. } = &mut action
                && let Some(revision) = own.get(&target.uid)
            {
                patch["metadata"]["resourceVersion"] = json!(revision);
            }
            let uid = action.target().unwrap().uid.clone();
            let revision = self.write(&action)?;
            own.insert(uid, revision);
        }
        Ok(())
    }

    fn write(&mut self, action: &Action) -> Result<String, Refused> {
        match action {
            Action::Create { target, .. } if target.kind.kind == "ReplicaSet" => {
                let mut rs: ReplicaSet = action.created().unwrap();
                rs.metadata.generation = Some(1);
                self.stamp(&mut rs);
                if self.truth.sets.insert(target.name.clone(), rs).is_some() {
                    return Err(Refused);
                }
            }
            Action::Create { target, .. } => {
                let mut pod: Pod = action.created().unwrap();
                self.stamp(&mut pod);
                assert!(self.truth.pods.insert(target.name.clone(), pod).is_none());
            }
            Action::Patch { target, subresource, patch } if target.kind.kind == "ReplicaSet" => {
                let old = self.truth.sets.get(&target.name).cloned().ok_or(Refused)?;
                let new = self.patched(&old, patch)?;
                self.truth.sets.insert(target.name.clone(), bumped(new, &old, *subresource, |a, b| a.spec == b.spec));
            }
            Action::Patch { subresource, patch, .. } => {
                let old = self.deployment().clone();
                let new = self.patched(&old, patch)?;
                self.truth.deployment = Some(bumped(new, &old, *subresource, |a, b| a.spec == b.spec));
            }
            Action::Delete { target, resource_version, .. } if target.kind.kind == "ReplicaSet" => {
                if self.truth.sets.get(&target.name).is_none_or(|rs| rs.metadata.resource_version != *resource_version) {
                    return Err(Refused);
                }
                let rs = self.truth.sets.remove(&target.name).ok_or(Refused)?;
                let owner = objects::uid(&rs);
                assert!(
                    !self.truth.pods.values().any(|p| objects::controller_of(&p.metadata).unwrap().uid == owner && objects::active(p)),
                    "history with pods was deleted"
                );
            }
            Action::Delete { target, .. } => {
                let now = self.now;
                if let Some(pod) = self.truth.pods.get_mut(&target.name).filter(|p| objects::uid(*p) == target.uid) {
                    pod.metadata.deletion_timestamp.get_or_insert(Time(now));
                }
                self.revision += 1;
            }
            other => panic!("{other:?}"),
        }
        Ok(self.revision.to_string())
    }

    fn patched<K: Object>(&mut self, old: &K, patch: &Value) -> Result<K, Refused> {
        let meta = old.metadata();
        if patch["metadata"]["uid"].as_str() != meta.uid.as_deref()
            || patch["metadata"]["resourceVersion"].as_str() != meta.resource_version.as_deref()
        {
            return Err(Refused);
        }
        let mut new = patched(old, patch).unwrap();
        self.stamp(&mut new);
        Ok(new)
    }

    // ---- who acts ------------------------------------------------------------------------------------------------------

    /// Each cache catches up, or does not.
    fn deliver(&mut self, always: bool) {
        let late = |w: &World| !always && w.pick(3) == 0;
        for which in 0..2 {
            let (deployment, sets, pods) = (late(self), late(self), late(self));
            let truth = self.truth.clone();
            let view = if which == 0 { &mut self.rollout_view } else { &mut self.replicas_view };
            if !deployment {
                view.deployment = truth.deployment;
            }
            if !sets {
                view.sets = truth.sets;
            }
            if !pods {
                view.pods = truth.pods;
            }
        }
    }

    fn cx(&self) -> Cx {
        Cx { now: self.now, ids: self.ids.clone() }
    }

    fn run_rollout(&mut self) -> bool {
        let view = self.rollout_view.clone();
        let Some(deployment) = &view.deployment else { return false };
        let sets: Vec<&ReplicaSet> = view.sets.values().collect();
        let (plan, _) = rollout::plan(&rollout::Snapshot { deployment, sets: &sets, create_failure: None }, &self.cx());
        let acted = !plan.is_empty();
        let _ = self.apply(&plan);
        // It reads what it wrote before it acts again.
        self.rollout_view.sets = self.truth.sets.clone();
        acted
    }

    fn run_replicas(&mut self) -> bool {
        let view = self.replicas_view.clone();
        let related: BTreeSet<String> = view.sets.values().map(|s| objects::uid(s).to_string()).collect();
        let mut acted = false;
        for set in view.sets.values() {
            let pods: Vec<&Pod> = view.pods.values().collect();
            let s = replicas::Snapshot { set, pods: &pods, related: &related };
            let (plan, _) = replicas::plan(&s, &self.cx());
            let status = replicas::status(&s, None, &self.cx());
            acted |= !plan.is_empty() || !status.is_empty();
            let _ = self.apply(&plan);
            let _ = self.apply(&status);
        }
        // It reads what it wrote before it acts again.
        self.replicas_view.pods = self.truth.pods.clone();
        acted
    }

    /// The node's part: pods start, end, and in a wild world fail.
    fn run_pods(&mut self, always: bool) -> bool {
        let mut acted = false;
        for name in self.truth.pods.keys().cloned().collect::<Vec<_>>() {
            if !always && self.pick(2) == 0 {
                continue;
            }
            let pod = &self.truth.pods[&name];
            let (deleting, ready) = (objects::deleting(pod), objects::ready(pod));
            if deleting {
                self.truth.pods.remove(&name);
            } else if !ready && !objects::terminated(pod) {
                self.set_pod(&name, "Running", "True");
            } else if self.mode == Mode::Wild && !always && !objects::terminated(pod) && self.pick(8) == 0 {
                match self.pick(3) {
                    0 => self.set_pod(&name, "Failed", "False"),
                    1 => drop(self.truth.pods.remove(&name)),
                    _ => self.set_pod(&name, "Running", "False"),
                }
            } else {
                continue;
            }
            acted = true;
        }
        acted
    }

    fn set_pod(&mut self, name: &str, phase: &str, ready: &str) {
        let now = self.now;
        let mut pod = self.truth.pods[name].clone();
        let status = pod.status.get_or_insert_default();
        status.phase = Some(phase.into());
        conditions::set(&mut status.conditions, Condition::make("Ready", ready, "", "", now));
        self.stamp(&mut pod);
        self.truth.pods.insert(name.into(), pod);
    }

    fn run_user(&mut self) {
        let old = self.deployment().clone();
        let mut new = old.clone();
        let spec = new.spec.as_mut().unwrap();
        let wild = self.mode == Mode::Wild;
        match self.pick(if wild { 6 } else { 2 }) {
            0 | 1 => spec.template.spec.as_mut().unwrap().containers[0].image = Some(format!("v{}", self.pick(4))),
            2 => spec.replicas = Some(self.pick(15) as i32),
            3 => spec.paused = Some(self.pick(2) == 0),
            4 => {
                let amount = |v: Value| serde_json::from_value::<IntOrString>(v).unwrap();
                let rolling = spec.strategy.get_or_insert_default().rolling_update.get_or_insert_default();
                rolling.max_surge = Some(amount(self.amount()));
                rolling.max_unavailable = Some(amount(self.amount()));
            }
            _ => spec.min_ready_seconds = Some(self.pick(10) as i32),
        }
        self.stamp(&mut new);
        self.truth.deployment = Some(bumped(new, &old, None, |a, b| a.spec == b.spec));
    }

    // ---- what must hold ------------------------------------------------------------------------------------------------

    fn check(&mut self) -> Result<(), String> {
        let pods: Vec<&Pod> = self.truth.pods.values().collect();
        let d = self.truth.deployment.as_ref().unwrap();
        match self.mode {
            Mode::Calm => {
                let bounds = invariants::rollout_bounds(d, &pods, true);
                self.settled_once |= bounds.is_ok();
                if self.settled_once { bounds } else { invariants::rollout_bounds(d, &pods, false) }
            }
            Mode::Recreate => {
                let images: BTreeSet<_> =
                    pods.iter().filter(|p| !objects::terminated(p)).map(|p| p.spec.as_ref().unwrap().containers[0].image.clone()).collect();
                if images.len() > 1 { Err(format!("{images:?} run at once")) } else { Ok(()) }
            }
            Mode::Wild => {
                let spec = d.spec.as_ref().unwrap();
                self.most = self.most.max(spec.replicas.unwrap() + rollout::room(spec).surge);
                let active = pods.iter().filter(|p| objects::active(p)).count() as i32;
                if active > self.most { Err(format!("{active} pods where {} were ever allowed", self.most)) } else { Ok(()) }
            }
        }
    }

    /// All caches fresh, nothing fails, time passes: it ends, and as wanted.
    fn converge(&mut self) -> Result<(), String> {
        if let Some(spec) = &mut self.truth.deployment.as_mut().unwrap().spec {
            spec.paused = None;
        }
        let mut d = self.deployment().clone();
        self.stamp(&mut d);
        d.metadata.generation = d.metadata.generation.map(|g| g + 1);
        self.truth.deployment = Some(d);
        let mut quiet = 0;
        for _ in 0..400 {
            self.now += SignedDuration::from_secs(3);
            self.deliver(true);
            let acted = self.run_rollout() | self.run_replicas() | self.run_pods(true);
            self.check()?;
            quiet = if acted { 0 } else { quiet + 1 };
            if quiet > 5 {
                return self.is_as_wanted();
            }
        }
        Err("does not come to rest".into())
    }

    fn is_as_wanted(&self) -> Result<(), String> {
        let d = self.deployment();
        let (spec, status) = (d.spec.as_ref().unwrap(), d.status.as_ref().unwrap());
        let image = |p: &Pod| p.spec.as_ref().unwrap().containers[0].image.clone();
        let right = self
            .truth
            .pods
            .values()
            .filter(|p| objects::ready(p) && image(p) == spec.template.spec.as_ref().unwrap().containers[0].image)
            .count();
        let active = self.truth.pods.values().filter(|p| objects::active(p)).count();
        let wanted = spec.replicas.unwrap() as usize;
        let progressing = conditions::find(&status.conditions, "Progressing").map(|c| c.reason().to_string());
        let history = self.truth.sets.len() - 1;
        let done = right == wanted
            && active == wanted
            && status.available_replicas.unwrap_or(0) as usize == wanted
            && status.observed_generation == d.metadata.generation
            && progressing.as_deref() == Some("NewReplicaSetAvailable")
            && history <= spec.revision_history_limit.unwrap() as usize;
        if done {
            Ok(())
        } else {
            Err(format!("rests with {right} right of {active}, {wanted} wanted, {progressing:?}, {history} old sets: {status:?}"))
        }
    }
}

fn bumped<K: Object>(mut new: K, old: &K, subresource: Option<&str>, same_spec: impl Fn(&K, &K) -> bool) -> K {
    if subresource.is_none() && !same_spec(&new, old) {
        new.metadata_mut().generation = old.metadata().generation.map(|g| g + 1);
    }
    new
}

fn simulate(seed: u64, mode: Mode) -> Result<(), String> {
    let mut w = World::new(seed, mode);
    if mode == Mode::Calm {
        w.converge()?;
    }
    for _ in 0..120 {
        w.now += SignedDuration::from_secs(w.pick(4) as i64);
        match w.pick(12) {
            0 => w.run_user(),
            1..=3 => w.deliver(false),
            4..=6 => drop(w.run_rollout()),
            7..=9 => drop(w.run_replicas()),
            _ => drop(w.run_pods(false)),
        }
        w.check()?;
    }
    w.converge()
}

fn all_seeds(mode: Mode) {
    let seeds = option_env!("STAITHE_SEED").and_then(|s| s.parse().ok()).map_or(0..150, |s: u64| s..s + 1);
    for seed in seeds {
        if let Err(broken) = simulate(seed, mode) {
            panic!("seed {seed}: {broken}");
        }
    }
}

#[test]
fn never_fewer_ready_nor_more_pods_than_allowed() {
    all_seeds(Mode::Calm);
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    all_seeds(Mode::Recreate);
}

#[test]
fn whatever_happens_it_converges() {
    all_seeds(Mode::Wild);
}
