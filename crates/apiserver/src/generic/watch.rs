//! Watches: the present state where it is asked for, then every change, as one endless body.
//!
//! A watcher without selectors gets shared bytes. A slow one is told 410 by the cache and lists again; it holds nobody up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::{Reason, Status, Value};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ports::Identity;
use store::cache::{EventType, Object, Watcher, encode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Cx;
use super::read::{self, Filter};
use super::view;
use crate::limits;
use crate::negotiate::{Format, View, Wire};
use crate::request::{Info, Query};
use crate::respond::Body;
use crate::server::RowRef;

struct Stream {
    watcher: Watcher,
    filter: Filter,
    /// The state at the beginning, encoded as it is sent; then perhaps the bookmark that ends it.
    initial: VecDeque<Arc<Object>>,
    initial_end: Option<u64>,
    pending: VecDeque<Bytes>,
    view: Viewer,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    stopping: CancellationToken,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// What it takes to show an object: everything of the request that a view looks at.
struct Viewer {
    server: Arc<crate::Server>,
    info: Info,
    query: Query,
    row: RowRef,
    format: Format,
    columns_sent: bool,
}

impl Viewer {
    fn cx(&self) -> Cx<'_> {
        Cx {
            server: &self.server,
            who: Identity::default(),
            info: &self.info,
            query: &self.query,
            row: self.row,
            format: self.format,
            warnings: Vec::new(),
        }
    }

    fn is_plain(&self) -> bool {
        self.format.view == View::Object && self.row.alias.is_none()
    }

    fn event(&mut self, kind: EventType, object: &Object) -> Bytes {
        if self.is_plain() {
            return encode::event(kind, object);
        }
        let cx = self.cx();
        let Ok(value) = cx.value_of(object) else { return Bytes::new() };
        let mut shown = view::one(&cx, &value).ok().flatten().unwrap_or(value);
        // Columns are told once; later rows are of the same table.
        if self.columns_sent && self.format.view == View::Table {
            shown["columnDefinitions"] = Value::Null;
        }
        self.columns_sent = true;
        encode::event_of(kind.as_str(), shown.to_string().as_bytes())
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        match self.format.view {
            View::Object => encode::bookmark(&self.row.api_version(), self.row.kind, revision, initial_end),
            View::Metadata => encode::bookmark("meta.k8s.io/v1", "PartialObjectMetadata", revision, initial_end),
            View::Table => {
                let row = encode::bookmark("meta.k8s.io/v1", "PartialObjectMetadata", revision, initial_end);
                let object = serde_json::from_slice::<Value>(&row).map(|mut v| v["object"].take()).unwrap_or_default();
                let table = serde_json::json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": revision.to_string() },
                    "columnDefinitions": null, "rows": [{ "cells": [], "object": object }],
                });
                encode::event_of("BOOKMARK", table.to_string().as_bytes())
            }
        }
    }
}

fn timeout(cx: &Cx) -> Result<Duration, Status> {
    let asked = cx.query.number("timeoutSeconds")?.filter(|s| *s > 0);
    let own = || limits::WATCH_TIMEOUT_MIN_S + cx.server.config.ids.next_u64() % limits::WATCH_TIMEOUT_SPREAD_S;
    Ok(Duration::from_secs(asked.map_or_else(own, |s| s as u64).min(24 * 3600)))
}

pub async fn watch(cx: &mut Cx<'_>) -> Result<Response<Body>, Status> {
    if cx.format.wire == Wire::Yaml {
        return Err(Status::new(Reason::NotAcceptable, "watches are written as application/json only"));
    }
    let filter = Filter::of(cx)?;
    let permit = cx
        .server
        .watches
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::new(Reason::TooManyRequests, format!("too many watches: {} are open", limits::WATCHES_MAX)))?;
    let timeout = timeout(cx)?;
    let bookmarks = cx.query.flag("allowWatchBookmarks");
    let asked = read::revision_of(cx)?;
    let initial = cx.query.get("sendInitialEvents").map(|_| cx.query.flag("sendInitialEvents"));
    read::reached(cx, asked.unwrap_or(0)).await?;
    let prefix = cx.row.prefix(if cx.info.namespace.is_empty() { None } else { Some(cx.namespace()) });
    let cache = &cx.server.state.cache;
    let view = Viewer {
        server: cx.server.clone(),
        info: cx.info.clone(),
        query: cx.query.clone(),
        row: cx.row,
        format: Format { pretty: false, gzip: false, ..cx.format },
        columns_sent: false,
    };
    let (mut first, mut initial_end) = (VecDeque::new(), None);
    let from_now = initial == Some(true) || (initial.is_none() && asked.unwrap_or(0) == 0) || (asked.is_none() && initial == Some(false));
    let watcher = if from_now {
        let (snapshot, watcher) = cache.watch_now(&prefix).map_err(super::store_failed)?;
        if initial != Some(false) {
            first = snapshot.range(&prefix).filter(|o| filter.matches(o)).cloned().collect();
        }
        initial_end = (initial == Some(true) && bookmarks).then_some(snapshot.revision);
        watcher
    } else {
        match cache.watch(&prefix, asked.unwrap_or(0)) {
            Ok(watcher) => watcher,
            Err(error) => return Ok(response(vec![encode::error(&too_old(asked.unwrap_or(0), &error))])),
        }
    };
    let now = Instant::now();
    let stream = Stream {
        watcher,
        filter,
        initial: first,
        initial_end,
        pending: VecDeque::new(),
        view,
        bookmarks,
        next_bookmark: now + limits::BOOKMARK_INTERVAL,
        deadline: now + timeout,
        stopping: cx.server.stopping.clone(),
        ended: false,
        _permit: permit,
    };
    Ok(streaming(stream))
}

fn too_old(asked: u64, error: &store::Error) -> Status {
    match error {
        store::Error::Compacted(_) => Status::expired(format!("too old resource version: {asked}")),
        other => Status::internal(other),
    }
}

fn headed(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn response(events: Vec<Bytes>) -> Response<Body> {
    headed(crate::respond::full(events.concat()))
}

fn streaming(stream: Stream) -> Response<Body> {
    let frames = futures_util::stream::unfold(stream, |mut stream| async {
        let frame = stream.next().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(frame)), stream))
    });
    headed(StreamBody::new(frames.boxed()).boxed_unsync())
}

impl Stream {
    /// The next bytes to send; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.frame() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            let changes = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                changes = self.watcher.next() => changes,
                () = tokio::time::sleep_until(wake) => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    self.bookmark();
                    continue;
                }
            };
            match changes {
                Ok(changes) => changes.iter().for_each(|change| self.push(change)),
                Err(error) => {
                    self.pending.push_back(encode::error(&too_old(self.watcher.told(), &error)));
                    self.ended = true;
                }
            }
        }
    }

    fn push(&mut self, change: &store::cache::Change) {
        if self.filter.is_everything() {
            let event = if self.view.is_plain() { change.encoded() } else { self.view.event(change.kind(), &change.object) };
            self.pending.push_back(event);
        } else if let Some((kind, object)) = change.seen_by(|o| self.filter.matches(o)) {
            self.pending.push_back(self.view.event(kind, &object));
        }
    }

    fn bookmark(&mut self) {
        self.next_bookmark = Instant::now() + limits::BOOKMARK_INTERVAL;
        // What happened between the last `next` and now must be told before the bookmark that covers it.
        if let Ok(changes) = self.watcher.take() {
            changes.iter().for_each(|change| self.push(change));
            self.pending.push_back(self.view.bookmark(self.watcher.told(), false));
        }
    }

    /// What waits, up to a frame's size. One event is passed on as it is, without a copy.
    fn frame(&mut self) -> Option<Bytes> {
        let mut waiting = 0;
        while waiting < limits::WATCH_FRAME_BYTES
            && let Some(object) = self.initial.pop_front()
        {
            let event = self.view.event(EventType::Added, &object);
            waiting += event.len();
            self.pending.push_back(event);
        }
        if self.initial.is_empty()
            && let Some(revision) = self.initial_end.take()
        {
            self.pending.push_back(self.view.bookmark(revision, true));
        }
        let first = self.pending.pop_front()?;
        let small = |next: &Bytes, have: usize| have + next.len() <= limits::WATCH_FRAME_BYTES;
        if !self.pending.front().is_some_and(|next| small(next, first.len())) {
            return Some(first);
        }
        let mut joined = BytesMut::from(first);
        while let Some(next) = self.pending.front().filter(|next| small(next, joined.len())) {
            joined.extend_from_slice(next);
            self.pending.pop_front();
        }
        Some(joined.freeze())
    }
}
