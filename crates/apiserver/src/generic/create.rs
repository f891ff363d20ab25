//! Creating an object: decode, place, default, admit, validate, own, store.

use api::{Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use store::{Expect, Write};

use super::update::{Change, Operation, own, settled, stored};
use super::{Cx, meta, show, store_failed};
use crate::respond::Body;
use crate::{admission, limits};

pub async fn create(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let manager = cx.field_manager(headers)?;
    let dry_run = cx.query.dry_run()?;
    let strictness = cx.strictness()?;
    let decoded = api::decode::decode(crate::negotiate::media_type(headers), &body)?;
    let mut object = decoded.object;
    cx.check_kind(&mut object)?;
    cx.check(&mut object, strictness, &decoded.duplicates)?;
    let change = Change { manager: &manager, operation: Operation::Update, subresource: "", dry_run };
    let created = insert(cx, object, &change).await?;
    show(cx, StatusCode::CREATED, &created)
}

/// Makes `object`, whose structure has been checked, an object of the cluster.
pub async fn insert(cx: &mut Cx<'_>, object: Value, change: &Change<'_>) -> Result<Value, Status> {
    let generate = meta::text(&object, "name").is_empty() && !meta::text(&object, "generateName").is_empty();
    for attempt in 1.. {
        match insert_once(cx, object.clone(), change, generate).await {
            Err(status) if generate && attempt < limits::NAME_ATTEMPTS && status.is_already_exists() => {}
            done => return done,
        }
    }
    unreachable!("the loop ends by returning")
}

async fn insert_once(cx: &mut Cx<'_>, mut object: Value, change: &Change<'_>, generate: bool) -> Result<Value, Status> {
    cx.check_kind(&mut object)?;
    meta::place(cx, &mut object)?;
    meta::begin(cx, &mut object, generate)?;
    let name = meta::text(&object, "name").to_string();
    if cx.row.namespaced() {
        admission::check_open(&cx.server.state, cx.row.group, cx.row.plural, cx.namespace(), &name)?;
    }
    admission::check_agent(&cx.who, cx.row, &object)?;
    // What an object has come to is not for its creator to say; a node's agent registers with its status.
    if cx.row.has_status
        && cx.row.plural != "nodes"
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    (cx.row.hooks.default)(&mut object);
    admission::prepare(&cx.admission(None), &object).await?;
    let _turn = turn(cx).await;
    admission::admit(&cx.admission(None), &mut object)?;
    cx.validate(&object, None)?;
    own(cx, None, &mut object, change);
    let key = cx.row.key(cx.namespace(), &name);
    let exists = || Status::already_exists(cx.row.group, cx.row.plural, &name);
    if cx.server.state.get(&key).is_some() {
        return Err(exists());
    }
    if change.dry_run {
        return Ok(object);
    }
    let write = Write { key, expect: Expect::Absent, value: Some(stored(cx, &mut object)?) };
    match cx.server.state.cache.txn(vec![write]).await {
        Ok(revision) => Ok(settled(object, revision)),
        Err(store::Error::Conflict { .. }) => Err(exists()),
        Err(error) => Err(store_failed(error)),
    }
}

/// Writers of Services take turns, for addresses are given once.
pub async fn turn(cx: &Cx<'_>) -> Option<tokio::sync::OwnedMutexGuard<()>> {
    let serial = cx.row.group.is_empty() && cx.row.plural == "services";
    if serial { Some(cx.server.allocators.lock().await) } else { None }
}
