//! Changing an object: the new state over the old, with an optimistic lock; tried again when nobody asked for a revision.

use api::managed::{self, Writer};
use api::{Cause, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use store::{Expect, Revision, Write};

use super::create::turn;
use super::{Cx, MODIFIED, meta, show, store_failed};
use crate::respond::Body;
use crate::{admission, limits};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Update,
    /// Server-side apply: ownership was computed with the merge.
    Apply,
}

/// Who writes, and how it goes into `managedFields`.
pub struct Change<'a> {
    pub manager: &'a str,
    pub operation: Operation,
    /// Empty, or `status`, `scale`, `binding` …
    pub subresource: &'a str,
    pub dry_run: bool,
}

/// `PUT`, also of `/status` and other subresources that are the object itself.
pub async fn update(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let manager = cx.field_manager(headers)?;
    let dry_run = cx.query.dry_run()?;
    let strictness = cx.strictness()?;
    let decoded = api::decode::decode(crate::negotiate::media_type(headers), &body)?;
    let mut object = decoded.object;
    cx.check_kind(&mut object)?;
    cx.check(&mut object, strictness, &decoded.duplicates)?;
    let warnings = std::mem::take(&mut cx.warnings);
    let info = cx.info;
    let change = Change { manager: &manager, operation: Operation::Update, subresource: &info.subresource, dry_run };
    let written = write(cx, &change, |_, _| Ok(object.clone())).await?;
    cx.warnings.extend(warnings);
    show(cx, StatusCode::OK, &written)
}

/// Proposes a new state of the object that the URL names and writes it, with what an update entails. A proposal without
/// a revision of its own is made anew from the newest state after a conflict.
pub async fn write(
    cx: &mut Cx<'_>,
    change: &Change<'_>,
    mut propose: impl FnMut(&mut Cx<'_>, &Value) -> Result<Value, Status>,
) -> Result<Value, Status> {
    let _turn = turn(cx).await;
    for _ in 0..limits::WRITE_ATTEMPTS {
        cx.warnings.clear();
        let existing = cx.existing()?;
        let old = cx.value_of(&existing)?;
        let proposed = propose(cx, &old)?;
        let explicit = change.operation == Operation::Update && !meta::text(&proposed, "resourceVersion").is_empty();
        let mut new = settle(cx, change, proposed, &old)?;
        if change.dry_run {
            return Ok(new);
        }
        let gone = meta::is_released(&new);
        if !gone && meta::is_same(&new, &old) {
            return Ok(old);
        }
        let value = if gone { None } else { Some(stored(cx, &mut new)?) };
        let write = Write { key: existing.key.to_string(), expect: Expect::At(existing.revision), value };
        match cx.server.state.cache.txn(vec![write]).await {
            Ok(revision) => return Ok(settled(new, revision)),
            Err(store::Error::Conflict { .. }) if explicit && cx.info.verb == "update" => return Err(cx.conflict(MODIFIED)),
            Err(store::Error::Conflict { found, .. }) => cx.server.state.caught_up(found).await,
            Err(error) => return Err(store_failed(error)),
        }
    }
    Err(cx.conflict(MODIFIED))
}

/// The state that will be stored: the proposal with everything that is not the writer's to say.
fn settle(cx: &mut Cx, change: &Change, mut new: Value, old: &Value) -> Result<Value, Status> {
    cx.check_kind(&mut new)?;
    admission::check_agent(&cx.who, cx.row, old)?;
    preconditions(cx, &new, old)?;
    meta::place(cx, &mut new)?;
    meta::carry_over(&mut new, old);
    let mut new = part(change.subresource, new, old, cx.row.has_status);
    meta::check_finalizers(cx, &new, old)?;
    (cx.row.hooks.default)(&mut new);
    match change.subresource {
        "" | "scale" => {
            admission::admit(&cx.admission(Some(old)), &mut new)?;
            cx.validate(&new, Some(old))?;
        }
        // These change what a pod's owner may not, and are checked where they are served.
        "binding" | "ephemeralcontainers" | "finalize" => {}
        _ => cx.validate(&new, Some(old))?,
    }
    meta::count_generation(cx, &mut new, old);
    own(cx, Some(old), &mut new, change);
    new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    Ok(new)
}

fn preconditions(cx: &Cx, new: &Value, old: &Value) -> Result<(), Status> {
    let (name, url) = (meta::text(new, "name"), cx.info.name.as_str());
    if name.is_empty() {
        let cause = Cause::required("metadata.name", "name is required");
        return Err(Status::invalid(cx.row.group, cx.row.kind, url, vec![cause]));
    }
    if name != url {
        return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({url})")));
    }
    let uid = meta::text(new, "uid");
    if !uid.is_empty() && uid != meta::text(old, "uid") {
        let have = meta::text(old, "uid");
        return Err(cx.conflict(&format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}")));
    }
    let revision = meta::text(new, "resourceVersion");
    if !revision.is_empty() && revision != "0" && revision != meta::text(old, "resourceVersion") {
        return Err(cx.conflict(MODIFIED));
    }
    Ok(())
}

/// What of a proposal a subresource takes; the rest stays as it is.
fn part(subresource: &str, mut new: Value, old: &Value, has_status: bool) -> Value {
    let put = |object: &mut Value, field: &str, from: &Value| match from.get(field) {
        Some(value) => object[field] = value.clone(),
        None => {
            if let Some(map) = object.as_object_mut() {
                map.remove(field);
            }
        }
    };
    let keep = |field: &str| {
        let mut kept = old.clone();
        put(&mut kept, field, &new);
        // Ownership came with the proposal when it was applied.
        let managed = new["metadata"].get("managedFields").cloned();
        match managed {
            Some(managed) => kept["metadata"]["managedFields"] = managed,
            None => meta::drop(&mut kept, &["managedFields"]),
        }
        kept
    };
    match subresource {
        "status" => keep("status"),
        "finalize" => {
            let mut kept = keep("metadata");
            kept["metadata"] = old["metadata"].clone();
            kept["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
            if kept["spec"]["finalizers"].is_null() {
                kept["spec"] = Value::Object(Default::default());
            }
            kept
        }
        "ephemeralcontainers" => {
            let mut kept = old.clone();
            kept["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
            kept
        }
        "binding" => new,
        _ => {
            if has_status {
                put(&mut new, "status", old);
            }
            new
        }
    }
}

/// How the writer is noted in `managedFields`.
pub fn writer<'c>(cx: &Cx, change: &Change<'c>, api_version: &'c str) -> Writer<'c> {
    Writer {
        schema: api::schema::for_kind(cx.row.group, cx.row.version, cx.row.kind),
        api_version,
        manager: change.manager,
        subresource: change.subresource,
        now: cx.server.config.clock.now(),
    }
}

/// Who owns which field after this write. Apply has said so already.
pub fn own(cx: &Cx, old: Option<&Value>, new: &mut Value, change: &Change) {
    if change.operation == Operation::Update {
        managed::update(&writer(cx, change, &cx.row.api_version()), old, new);
    }
}

/// An object as the store has it: without revision, in the group that keeps it. Takes the revision out of `object`.
pub fn stored(cx: &Cx, object: &mut Value) -> Result<Bytes, Status> {
    meta::drop(object, &["resourceVersion"]);
    let bytes = match cx.row.alias {
        None => serde_json::to_vec(object),
        Some(alias) => {
            let mut kept = object.clone();
            (alias.to_storage)(&mut kept);
            serde_json::to_vec(&kept)
        }
    };
    bytes.map(Bytes::from).map_err(Status::internal)
}

/// An object as it is shown after it was stored.
pub fn settled(mut object: Value, revision: Revision) -> Value {
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    object
}
