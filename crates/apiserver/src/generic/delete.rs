//! Deleting: at once, after a grace period, or when finalizers are done.

use std::sync::Arc;

use api::{Cause, Status, Value};
use base::Timestamp;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use store::cache::Object;
use store::{Expect, Write};

use super::update::{settled, stored};
use super::{Cx, MODIFIED, meta, read, show, store_failed};
use crate::respond::Body;
use crate::server::success;
use crate::{admission, limits};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Foreground,
    Background,
    Orphan,
}

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    grace_s: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    pub dry_run: bool,
}

impl Options {
    /// From the body, where there is one, and from the query.
    pub fn of(cx: &Cx, headers: &HeaderMap, body: &[u8]) -> Result<Options, Status> {
        let mut options = Options::default();
        if !body.iter().all(u8::is_ascii_whitespace) {
            options = Options::parse(&api::decode::decode(crate::negotiate::media_type(headers), body)?.object)?;
        }
        if let Some(grace) = cx.query.number("gracePeriodSeconds")? {
            options.grace_s = Some(grace);
        }
        if let Some(policy) = cx.query.text("propagationPolicy") {
            options.propagation = Some(propagation(policy)?);
        }
        if cx.query.get("orphanDependents").is_some() && options.propagation.is_none() {
            let orphan = cx.query.flag("orphanDependents");
            options.propagation = Some(if orphan { Propagation::Orphan } else { Propagation::Background });
        }
        options.dry_run |= cx.query.dry_run()?;
        Ok(options)
    }

    pub fn parse(body: &Value) -> Result<Options, Status> {
        let text = |v: &Value| v.as_str().map(String::from);
        let mut options = Options {
            grace_s: body["gracePeriodSeconds"].as_i64(),
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            dry_run: body["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All")),
            propagation: None,
        };
        if let Some(policy) = body["propagationPolicy"].as_str() {
            options.propagation = Some(propagation(policy)?);
        } else if let Some(orphan) = body["orphanDependents"].as_bool() {
            options.propagation = Some(if orphan { Propagation::Orphan } else { Propagation::Background });
        }
        Ok(options)
    }
}

fn propagation(text: &str) -> Result<Propagation, Status> {
    match text {
        "Foreground" => Ok(Propagation::Foreground),
        "Background" => Ok(Propagation::Background),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let cause = Cause::not_supported("propagationPolicy", &other.into(), &["Foreground", "Background", "Orphan"]);
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]))
        }
    }
}

pub async fn delete(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let options = Options::of(cx, headers, &body)?;
    let key = cx.key();
    match remove(cx, &key, &options).await? {
        Removed::Going(object) => show(cx, StatusCode::OK, &object),
        Removed::Gone(object) if returns_object(cx) => show(cx, StatusCode::OK, &object),
        Removed::Gone(object) => Ok(success(StatusCode::OK, meta::details(cx, &object))),
    }
}

fn returns_object(cx: &Cx) -> bool {
    cx.row.group.is_empty() && matches!(cx.row.plural, "pods" | "services" | "serviceaccounts")
}

pub enum Removed {
    /// Not there any more; its last state.
    Gone(Value),
    /// Marked; it goes when its grace period or its finalizers are over.
    Going(Value),
}

/// Deletes one object, or marks it as to be deleted.
pub async fn remove(cx: &Cx<'_>, key: &str, options: &Options) -> Result<Removed, Status> {
    for _ in 0..limits::WRITE_ATTEMPTS {
        let existing = cx.server.state.get(key).ok_or_else(|| cx.not_found())?;
        match remove_once(cx, &existing, options).await? {
            Some(removed) => return Ok(removed),
            None if options.revision.is_some() => return Err(cx.conflict(MODIFIED)),
            None => {}
        }
    }
    Err(cx.conflict(MODIFIED))
}

/// `None`: somebody else wrote in between.
async fn remove_once(cx: &Cx<'_>, existing: &Arc<Object>, options: &Options) -> Result<Option<Removed>, Status> {
    let old = cx.value_of(existing)?;
    admission::check_delete(cx.row.plural, cx.row.group, meta::text(&old, "name"))?;
    admission::check_agent(&cx.who, cx.row, &old)?;
    check_preconditions(cx, &old, options)?;
    let mut new = old.clone();
    let mut grace = Grace::Now;
    if cx.row.group.is_empty() && cx.row.plural == "pods" {
        grace = pod_grace(&old, options, cx.server.config.clock.now());
    }
    propagate(&mut new, options.propagation);
    match grace {
        Grace::Pending => return Ok(Some(Removed::Going(old))),
        Grace::Until { at, seconds } => mark(cx, &mut new, &base::rfc3339(at), seconds),
        Grace::Now => mark_now(cx, &mut new),
    }
    let gone = meta::is_released(&new);
    if options.dry_run {
        return Ok(Some(if gone { Removed::Gone(old) } else { Removed::Going(new) }));
    }
    if !gone && meta::is_same(&new, &old) {
        return Ok(Some(Removed::Going(old)));
    }
    let value = if gone { None } else { Some(stored(cx, &mut new)?) };
    let write = Write { key: existing.key.to_string(), expect: Expect::At(existing.revision), value };
    match cx.server.state.cache.txn(vec![write]).await {
        Ok(revision) if gone => Ok(Some(Removed::Gone(settled(new, revision)))),
        Ok(revision) => Ok(Some(Removed::Going(settled(new, revision)))),
        Err(store::Error::Conflict { found, .. }) => {
            cx.server.state.caught_up(found).await;
            Ok(None)
        }
        Err(error) => Err(store_failed(error)),
    }
}

fn check_preconditions(cx: &Cx, old: &Value, options: &Options) -> Result<(), Status> {
    let name = meta::text(old, "name");
    let refuse = |why: String| Err(Status::conflict(cx.row.group, cx.row.plural, name, &why));
    if let Some(uid) = &options.uid
        && uid != meta::text(old, "uid")
    {
        let have = meta::text(old, "uid");
        return refuse(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({have}). The object might have been deleted and then recreated"
        ));
    }
    if let Some(revision) = &options.revision
        && revision != meta::text(old, "resourceVersion")
    {
        let have = meta::text(old, "resourceVersion");
        return refuse(format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({have}). The object might have been modified"
        ));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Grace {
    /// No grace (any more).
    Now,
    Until {
        at: Timestamp,
        seconds: i64,
    },
    /// It was marked before, and stays so.
    Pending,
}

/// Pods are given time: their own, or what the deleter says, and that may only be shortened later. The agent ends it
/// by deleting with 0.
fn pod_grace(pod: &Value, options: &Options, now: Timestamp) -> Grace {
    let asked = options.grace_s.map(|s| if s < 0 { 1 } else { s });
    let after = |from: Timestamp, seconds: i64| Timestamp::from_second(from.as_second().saturating_add(seconds)).unwrap_or(from);
    let marked = pod["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    if let Some(marked) = marked {
        let current = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        return match asked {
            _ if current == 0 => Grace::Now,
            Some(0) => Grace::Now,
            Some(seconds) if seconds < current => {
                let at = after(marked, seconds - current);
                if at < now { Grace::Until { at: now, seconds: 1 } } else { Grace::Until { at, seconds } }
            }
            _ => Grace::Pending,
        };
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let seconds = if unscheduled || over { 0 } else { asked.unwrap_or(own).max(0) };
    if seconds == 0 { Grace::Now } else { Grace::Until { at: after(now, seconds), seconds } }
}

fn mark(cx: &Cx, object: &mut Value, at: &str, grace_s: i64) {
    let first = object["metadata"]["deletionTimestamp"].is_null();
    object["metadata"]["deletionTimestamp"] = at.into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace_s.into();
    if first && let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = (generation + 1).into();
    }
    if cx.row.group.is_empty() && cx.row.plural == "namespaces" {
        object["status"]["phase"] = "Terminating".into();
    }
}

fn mark_now(cx: &Cx, object: &mut Value) {
    let now = cx.now();
    let at = object["metadata"]["deletionTimestamp"].as_str().map_or(now, String::from);
    mark(cx, object, &at, 0);
    if cx.row.group.is_empty() && cx.row.plural == "namespaces" {
        meta::drop(object, &["deletionGracePeriodSeconds"]);
    }
}

/// The finalizers that make the garbage collector delete or orphan dependents first.
fn propagate(object: &mut Value, policy: Option<Propagation>) {
    const FOREGROUND: &str = "foregroundDeletion";
    const ORPHAN: &str = "orphan";
    let Some(policy) = policy else { return };
    let mut finalizers: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
    match policy {
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
        Propagation::Background => {}
    }
    if finalizers.is_empty() {
        meta::drop(object, &["finalizers"]);
    } else {
        object["metadata"]["finalizers"] = finalizers.into();
    }
}

/// `DELETE` of a whole list: everything that the selectors choose.
pub async fn collection(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let options = Options::of(cx, headers, &body)?;
    let page = read::page(cx).await?;
    let mut items = Vec::new();
    for object in &page.objects {
        match remove(cx, &object.key, &options).await {
            Ok(Removed::Gone(object) | Removed::Going(object)) => items.push(object),
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status),
        }
    }
    let list = serde_json::json!({
        "kind": format!("{}List", cx.row.kind),
        "apiVersion": cx.row.api_version(),
        "metadata": { "resourceVersion": cx.server.state.cache.revision().to_string() },
        "items": items,
    });
    Ok(crate::respond::document(StatusCode::OK, &cx.format, vec![Bytes::from(list.to_string())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_given_time_that_only_shrinks() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let at = |s: i64| Timestamp::from_second(now.as_second() + s).unwrap();
        let running =
            json!({ "metadata": {}, "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 }, "status": { "phase": "Running" } });
        let asked = |s: Option<i64>| Options { grace_s: s, ..Options::default() };
        assert_eq!(pod_grace(&running, &asked(None), now), Grace::Until { at: at(30), seconds: 30 });
        assert_eq!(pod_grace(&running, &asked(Some(5)), now), Grace::Until { at: at(5), seconds: 5 });
        assert_eq!(pod_grace(&running, &asked(Some(-3)), now), Grace::Until { at: at(1), seconds: 1 });
        assert_eq!(pod_grace(&running, &asked(Some(0)), now), Grace::Now);
        let mut pending = running.clone();
        pending["spec"]["nodeName"] = Value::Null;
        assert_eq!(pod_grace(&pending, &asked(Some(30)), now), Grace::Now);
        let mut marked = running.clone();
        marked["metadata"] = json!({ "deletionTimestamp": base::rfc3339(at(30)), "deletionGracePeriodSeconds": 30 });
        assert_eq!(pod_grace(&marked, &asked(None), now), Grace::Pending);
        assert_eq!(pod_grace(&marked, &asked(Some(60)), now), Grace::Pending);
        assert_eq!(pod_grace(&marked, &asked(Some(10)), now), Grace::Until { at: at(10), seconds: 10 });
        assert_eq!(pod_grace(&marked, &asked(Some(0)), now), Grace::Now);
        assert_eq!(pod_grace(&marked, &asked(Some(10)), at(25)), Grace::Until { at: at(25), seconds: 1 });
    }
}
