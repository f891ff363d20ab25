//! Lists: selectors, pages, revisions. Items and revision come from one snapshot; items are shared bytes.

use std::sync::Arc;

use api::selector::{FieldSelector, Selector};
use api::{Cause, Reason, Status, Value};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD as B64, Engine as _};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use store::Revision;
use store::cache::{Object, Snapshot, encode};

use super::{Cx, view};
use crate::limits;
use crate::negotiate::View;
use crate::respond::{self, Body};
use crate::server::RowRef;

/// Which objects of a kind a list or watch is about.
pub struct Filter {
    labels: Selector,
    fields: FieldSelector,
    /// Not empty: only this name.
    only: String,
    row: RowRef,
}

impl Filter {
    pub fn of(cx: &Cx) -> Result<Filter, Status> {
        let wrong = |e: &dyn std::fmt::Display| Status::bad_request(format!("unable to parse requirement: {e}"));
        let labels = Selector::parse(cx.query.get("labelSelector").unwrap_or_default()).map_err(|e| wrong(&e))?;
        let fields = FieldSelector::parse(cx.query.get("fieldSelector").unwrap_or_default()).map_err(|e| wrong(&e))?;
        fields.check(cx.row).map_err(|e| Status::bad_request(e.to_string()))?;
        Ok(Filter { labels, fields, only: cx.info.only.clone(), row: cx.row })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.only.is_empty()
    }

    pub fn matches(&self, object: &Object) -> bool {
        let named = self.only.is_empty() || self.only == object.name();
        if !named || !self.labels.matches_with(|key| object.label(key)) {
            return false;
        }
        if self.fields.is_everything() {
            return true;
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(&object.json()) else { return false };
        if let Some(alias) = self.row.alias {
            (alias.from_storage)(&mut value);
        }
        self.fields.matches(self.row, &value)
    }
}

/// Where the next page begins, and the revision that all pages show.
#[derive(Serialize, Deserialize)]
struct Continue {
    rv: Revision,
    after: String,
}

fn too_large(asked: Revision, current: Revision) -> Status {
    let mut status = Status::new(Reason::Timeout, format!("Too large resource version: {asked}, current: {current}"));
    let cause = Cause { reason: "ResourceVersionTooLarge".into(), message: "Too large resource version".into(), field: String::new() };
    status.details = Some(api::status::Details { causes: vec![cause], retry_after_seconds: Some(1), ..Default::default() });
    status
}

pub fn revision_of(cx: &Cx) -> Result<Option<Revision>, Status> {
    let Some(text) = cx.query.text("resourceVersion") else { return Ok(None) };
    let wrong =
        || Status::invalid("meta.k8s.io", "ListOptions", "", vec![Cause::invalid("resourceVersion", &text.into(), "must be a number")]);
    text.parse().map(Some).map_err(|_| wrong())
}

/// Waits, for a bounded time, until the cache has seen the revision that the request names.
pub async fn at_least(cx: &Cx<'_>) -> Result<(), Status> {
    let Some(asked) = revision_of(cx)? else { return Ok(()) };
    reached(cx, asked).await
}

pub async fn reached(cx: &Cx<'_>, asked: Revision) -> Result<(), Status> {
    let cache = &cx.server.state.cache;
    tokio::time::timeout(limits::CACHE_WAIT, cache.reached(asked)).await.map_err(|_| too_large(asked, cache.revision()))
}

/// The snapshot to show, and the key after which it is shown.
async fn snapshot(cx: &Cx<'_>) -> Result<(Arc<Snapshot>, String), Status> {
    let cache = &cx.server.state.cache;
    let matching = cx.query.text("resourceVersionMatch");
    if let Some(token) = cx.query.text("continue") {
        let parsed = B64.decode(token).ok().and_then(|bytes| serde_json::from_slice::<Continue>(&bytes).ok());
        let at = parsed.ok_or_else(|| Status::bad_request("continue key is not valid"))?;
        let gone = "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.";
        let held = cache.held(at.rv).ok_or_else(|| Status::expired(gone))?;
        return Ok((held, at.after));
    }
    let asked = revision_of(cx)?;
    match (matching, asked) {
        (Some(_), None) => {
            let cause = Cause::forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided");
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause]))
        }
        (Some("Exact"), Some(asked)) if asked > 0 => {
            reached(cx, asked).await?;
            let gone = || Status::expired(format!("The resourceVersion for the provided list is too old: {asked}"));
            Ok((cache.held(asked).ok_or_else(gone)?, String::new()))
        }
        (None | Some("NotOlderThan"), asked) => {
            reached(cx, asked.unwrap_or(0)).await?;
            Ok((cache.snapshot(), String::new()))
        }
        (Some(other), _) => {
            let cause = Cause::not_supported("resourceVersionMatch", &other.into(), &["Exact", "NotOlderThan"]);
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause]))
        }
    }
}

/// What one list shows.
pub struct Page {
    pub revision: Revision,
    pub objects: Vec<Arc<Object>>,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

pub async fn page(cx: &Cx<'_>) -> Result<Page, Status> {
    let filter = Filter::of(cx)?;
    let (snapshot, after) = snapshot(cx).await?;
    let prefix = cx.row.prefix(if cx.info.namespace.is_empty() { None } else { Some(cx.namespace()) });
    let limit = cx.query.number("limit")?.unwrap_or(0);
    if limit < 0 {
        return Err(Status::bad_request("limit must not be negative"));
    }
    let limit = if limit == 0 { usize::MAX } else { (limit as usize).min(limits::LIST_LIMIT_MAX) };
    let everything = filter.is_everything();
    let mut found = snapshot.range_after(&prefix, &after).filter(|o| everything || filter.matches(o));
    let objects: Vec<Arc<Object>> = found.by_ref().take(limit).cloned().collect();
    let mut page = Page { revision: snapshot.revision, objects, continue_token: String::new(), remaining: None };
    if page.objects.len() == limit && found.next().is_some() {
        cx.server.state.cache.hold(&snapshot);
        let after = page.objects.last().map_or(String::new(), |o| o.key.to_string());
        // How many remain is told only where it costs nothing to know: without selectors.
        page.remaining = everything.then(|| snapshot.range_after(&prefix, &after).count());
        let token = serde_json::to_vec(&Continue { rv: snapshot.revision, after }).map_err(Status::internal)?;
        page.continue_token = B64.encode(token);
    }
    Ok(page)
}

pub async fn list(cx: &mut Cx<'_>) -> Result<Response<Body>, Status> {
    let page = page(cx).await?;
    if cx.format.view == View::Object && cx.row.alias.is_none() {
        let kind = format!("{}List", cx.row.kind);
        let body = encode::list(&cx.row.api_version(), &kind, page.revision, &page.continue_token, page.remaining, &page.objects);
        return Ok(respond::document(StatusCode::OK, &cx.format, body));
    }
    view::list(cx, &page)
}
