//! The one applier: executes plans, with the planner's preconditions, as one identity, and tells what came of it.
//!
//! Decides nothing: waves in order, the steps of a wave together, stop after a wave in which a step failed.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Ids, SharedClock};
use client::{Client, DeleteOptions, Error, Informer, Key, Patch, Recorder};
use futures_util::StreamExt;
use futures_util::stream;
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use plan::{Action, Kind, Plan, Reason, Severity, Step, Target};
use serde_json::{Value, json};

use crate::limits;

/// One controller's hands.
#[derive(Clone)]
pub(crate) struct Applier {
    client: Client,
    recorder: Recorder,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The newest revision written, by plural: what the caches must reach before the next decision.
    written: BTreeMap<String, u64>,
    /// Deleted at once by an answer that named no revision.
    gone: Vec<Target>,
    pub failed: Option<Failure>,
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub action: Action,
    /// The step's own words for it: `FailedCreate`.
    pub reason: Option<Reason>,
    pub error: Error,
}

impl Applied {
    /// Waits until the cache shows what was written of its kind. False where it did not in time.
    pub async fn seen<K: client::Kind>(&self, informer: &Informer<K>) -> bool {
        let mut seen = true;
        if let Some(revision) = self.written.get(K::URL_PATH_SEGMENT) {
            seen &= informer.reached(&revision.to_string()).await;
        }
        for target in self.gone.iter().filter(|t| t.kind.plural == K::URL_PATH_SEGMENT) {
            let key = Key::new(&target.namespace, &target.name);
            let left = |s: &client::Snapshot<K>| s.by_key(&key).is_none_or(|o| o.metadata().uid.as_deref() != Some(&target.uid));
            seen &= informer.until(left).await;
        }
        seen
    }

    /// What the reconcile answers: a lost race is repeated soon and is no error; `requeue` is the plan's wish.
    pub fn outcome(self, requeue: Option<Duration>) -> Result<Option<Duration>, Error> {
        match self.failed {
            None => Ok(requeue),
            Some(f) if f.error.is_conflict() || f.error.is_already_exists() => Ok(Some(limits::CONFLICT_RETRY)),
            Some(f) => Err(f.error),
        }
    }
}

impl Applier {
    /// `component` as upstream names itself in events.
    pub fn new(client: Client, clock: SharedClock, ids: Ids, component: &str) -> Self {
        let client = client.with_field_manager(component);
        let recorder = Recorder::start(&client, clock, ids, component, "");
        Self { client, recorder }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Tells the reasons on the object, or on the one that each is about.
    pub fn tell(&self, about: &ObjectReference, reasons: &[Reason]) {
        for reason in reasons {
            let own = reason.about.as_ref().map(reference);
            let about = own.as_ref().unwrap_or(about);
            match reason.severity {
                Severity::Normal => self.recorder.normal(about, reason.code, &reason.message),
                Severity::Warning => self.recorder.warning(about, reason.code, &reason.message),
            }
        }
    }

    /// Executes a plan. Events of its steps are told on `about`.
    pub async fn apply(&self, about: &ObjectReference, plan: Plan) -> Applied {
        let mut applied = Applied::default();
        // Revisions of objects that this plan itself wrote: the next patch of the same object builds on them.
        let mut own: BTreeMap<String, String> = BTreeMap::new();
        for wave in plan.waves {
            let steps: Vec<Step> = wave.into_iter().map(|step| rebased(step, &own)).collect();
            let mut ends = stream::iter(steps)
                .map(|step| async move { (self.write(&step.action).await, step) })
                .buffer_unordered(limits::WAVE_CONCURRENCY);
            while let Some((end, step)) = ends.next().await {
                match end {
                    Ok(answer) => {
                        note(&mut applied, &mut own, &step.action, &answer);
                        self.tell(about, step.done.as_slice());
                    }
                    Err(error) => self.fail(about, &mut applied, step, error),
                }
            }
            if applied.failed.is_some() {
                break;
            }
        }
        applied
    }

    fn fail(&self, about: &ObjectReference, applied: &mut Applied, step: Step, error: Error) {
        // A namespace that goes takes no newcomers: nobody need hear of it, and trying again would not help.
        if matches!(step.action, Action::Create { .. }) && namespace_is_leaving(&error) {
            return;
        }
        if let Some(words) = step.failed.as_ref().filter(|_| !error.is_conflict() && !error.is_already_exists()) {
            let told = Reason { message: format!("{}: {error}", words.message), ..words.clone() };
            self.tell(about, &[told]);
        }
        // The first says why; but a lost race says less than anything else.
        if applied.failed.as_ref().is_none_or(|f| f.error.is_conflict()) {
            applied.failed = Some(Failure { action: step.action, reason: step.failed, error });
        }
    }

    async fn write(&self, action: &Action) -> Result<Value, Error> {
        match action {
            Action::Create { target, object } => self.client.post(&path(&target.kind, &target.namespace, "", ""), object).await,
            Action::Patch { target, subresource, patch } => {
                let path = path(&target.kind, &target.namespace, &target.name, subresource.unwrap_or_default());
                self.client.patch_path(&path, &Patch::Merge(patch.clone())).await
            }
            Action::Delete { target, resource_version, propagation, grace_seconds } => {
                let options = DeleteOptions {
                    uid: (!target.uid.is_empty()).then(|| target.uid.clone()),
                    resource_version: resource_version.clone(),
                    propagation: propagation.map(|p| p.as_str()),
                    grace_period_seconds: *grace_seconds,
                };
                match self.client.delete_path(&path(&target.kind, &target.namespace, &target.name, ""), &options).await {
                    Err(e) if e.is_not_found() => Ok(Value::Null),
                    end => end,
                }
            }
            Action::DeleteCollection { kind, namespace } => {
                self.client.delete_path(&path(kind, namespace, "", ""), &DeleteOptions::default()).await
            }
            Action::Bind { pod, node } => {
                let body = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
                    "target": { "apiVersion": "v1", "kind": "Node", "name": node },
                });
                self.client.post(&path(&pod.kind, &pod.namespace, &pod.name, "binding"), &body).await
            }
            Action::Finalize { target, object } => {
                let mut body = object.clone();
                body["apiVersion"] = target.kind.api_version().into();
                body["kind"] = target.kind.kind.as_ref().into();
                let path = path(&target.kind, "", &target.name, "finalize");
                self.client.request(Method::PUT, &path, "application/json", body.to_string().into()).await
            }
        }
    }
}

/// A patch of an object that this plan patched before continues from there.
fn rebased(mut step: Step, own: &BTreeMap<String, String>) -> Step {
    if let Action::Patch { target, patch, .. } = &mut step.action
        && let Some(revision) = own.get(&target.uid)
        && patch["metadata"]["resourceVersion"].is_string()
    {
        patch["metadata"]["resourceVersion"] = revision.as_str().into();
    }
    step
}

fn note(applied: &mut Applied, own: &mut BTreeMap<String, String>, action: &Action, answer: &Value) {
    let Some(target) = action.target() else { return };
    match (answer["metadata"]["resourceVersion"].as_str(), action) {
        (Some(revision), Action::Create { .. } | Action::Patch { .. } | Action::Delete { .. }) if !revision.is_empty() => {
            let number = revision.parse().unwrap_or(0);
            let newest = applied.written.entry(target.kind.plural.to_string()).or_default();
            *newest = number.max(*newest);
            own.insert(target.uid.clone(), revision.into());
        }
        (_, Action::Delete { .. }) => applied.gone.push(target.clone()),
        _ => {}
    }
}

fn namespace_is_leaving(error: &Error) -> bool {
    let causes = error.status().and_then(|s| s.details.as_ref()).map(|d| d.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|c| c.reason == "NamespaceTerminating")
}

/// The path of a collection (`name` empty), an object, or a subresource of one.
pub(crate) fn path(kind: &Kind, namespace: &str, name: &str, subresource: &str) -> String {
    let mut out = if kind.group.is_empty() { format!("/api/{}", kind.version) } else { format!("/apis/{}/{}", kind.group, kind.version) };
    if kind.namespaced && !namespace.is_empty() {
        out += &format!("/namespaces/{namespace}");
    }
    out += &format!("/{}", kind.plural);
    for part in [name, subresource].into_iter().filter(|p| !p.is_empty()) {
        out += &format!("/{}", part.replace('%', "%25").replace('/', "%2F").replace('?', "%3F").replace('#', "%23"));
    }
    out
}

pub(crate) fn reference(target: &Target) -> ObjectReference {
    ObjectReference {
        api_version: Some(target.kind.api_version()),
        kind: Some(target.kind.kind.to_string()),
        namespace: (!target.namespace.is_empty()).then(|| target.namespace.clone()),
        name: Some(target.name.clone()),
        uid: Some(target.uid.clone()),
        ..ObjectReference::default()
    }
}
