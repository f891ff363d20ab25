//! An API server in memory, for tests of whoever uses a client: a transport without sockets, defaults or validation.
//!
//! It keeps the contract that informers and controllers lean on: one order of revisions, optimistic concurrency,
//! watches that resume or answer 410, finalizers holding a deletion. Selectors know `=` only, patches are merged.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use api::Status;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{Body, Client, Transport};

/// Cheap to clone; all clones are one server.
#[derive(Clone, Default)]
pub struct FakeServer(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Bumped at every change and cut.
    woken: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Collection path without a namespace, namespace, name.
    objects: BTreeMap<(String, String, String), Value>,
    revision: u64,
    history: Vec<(u64, Step)>,
    compacted: u64,
    /// Watches opened before the last cut end.
    cuts: u64,
    failures: VecDeque<Status>,
    requests: Vec<String>,
}

#[derive(Clone)]
struct Step {
    kind: &'static str,
    collection: String,
    namespace: String,
    object: Value,
    before: Option<Value>,
}

/// What a path names.
struct Target {
    collection: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl Target {
    /// `/api/v1/namespaces/ns/pods/web/status` and its shorter forms.
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let (head, rest) = match *parts.first()? {
            "api" => parts.split_at_checked(2)?,
            "apis" => parts.split_at_checked(3)?,
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", ns, rest @ ..] if !rest.is_empty() && !matches!(rest, ["status"] | ["finalize"]) => (*ns, rest),
            rest => ("", rest),
        };
        let decode = |s: &&str| percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned();
        Some(Self {
            collection: format!("/{}/{}", head.join("/"), rest.first()?),
            namespace: namespace.into(),
            name: rest.get(1).map(decode).unwrap_or_default(),
            subresource: rest.get(2).map(decode).unwrap_or_default(),
        })
    }

    fn key(&self) -> (String, String, String) {
        (self.collection.clone(), self.namespace.clone(), self.name.clone())
    }

    fn plural(&self) -> &str {
        self.collection.rsplit('/').next().unwrap_or_default()
    }

    fn not_found(&self) -> Status {
        Status::not_found("", self.plural(), &self.name)
    }
}

/// The parameters of a request, decoded.
struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(query: Option<&str>) -> Self {
        let decode = |s: &str| percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned();
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        Self(pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn matches(&self, object: &Value) -> bool {
        let terms = |name: &str| self.get(name).split(',').filter_map(|t| t.split_once('=')).map(own).collect::<Vec<_>>();
        let labels = terms("labelSelector").into_iter().all(|(k, v)| object["metadata"]["labels"][&k] == v);
        let field = |path: &str| path.split('.').fold(object, |o, part| &o[part]).as_str().unwrap_or_default().to_string();
        labels && terms("fieldSelector").into_iter().all(|(path, v)| field(&path) == v)
    }
}

fn own((k, v): (&str, &str)) -> (String, String) {
    (k.to_string(), v.trim_start_matches('=').to_string())
}

impl State {
    fn step(&mut self, kind: &'static str, target: &Target, mut object: Value, before: Option<Value>) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        if kind == "DELETED" {
            self.objects.remove(&target.key());
        } else {
            self.objects.insert(target.key(), object.clone());
        }
        let step =
            Step { kind, collection: target.collection.clone(), namespace: target.namespace.clone(), object: object.clone(), before };
        self.history.push((self.revision, step));
        object
    }

    fn call(
        &mut self,
        method: &Method,
        target: &mut Target,
        query: &Query,
        content_type: &str,
        body: &[u8],
    ) -> Result<(u16, Value), Status> {
        let body: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))? };
        match *method {
            Method::GET if target.name.is_empty() => Ok((200, self.list(target, query))),
            Method::GET => self.objects.get(&target.key()).cloned().map(|o| (200, o)).ok_or_else(|| target.not_found()),
            Method::POST if target.subresource.is_empty() => self.create(target, body).map(|o| (201, o)),
            // Bindings, tokens: only recorded.
            Method::POST => Ok((201, body)),
            Method::PUT => self.update(target, body).map(|o| (200, o)),
            Method::PATCH => {
                let missing = content_type.starts_with("application/apply-patch") && !self.objects.contains_key(&target.key());
                if missing {
                    return self.create(target, body).map(|o| (201, o));
                }
                let mut object = self.objects.get(&target.key()).cloned().ok_or_else(|| target.not_found())?;
                merge(&mut object, &body);
                self.update(target, object).map(|o| (200, o))
            }
            Method::DELETE => self.delete(target, &body).map(|o| (200, o)),
            _ => Err(Status::new(api::Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")),
        }
    }

    fn list(&self, target: &Target, query: &Query) -> Value {
        let within = |(collection, ns, _): &&(String, String, String)| {
            *collection == target.collection && (target.namespace.is_empty() || *ns == target.namespace)
        };
        let after = query.get("continue");
        let all = self.objects.iter().filter(|(k, _)| within(k)).filter(|(_, o)| query.matches(o));
        let mut items: Vec<(String, Value)> = all.map(|((_, ns, name), o)| (format!("{ns}/{name}"), o.clone())).collect();
        items.retain(|(at, _)| after.is_empty() || at.as_str() > after);
        let limit = query.get("limit").parse::<usize>().ok().filter(|n| *n > 0 && *n < items.len());
        let mut metadata = json!({ "resourceVersion": self.revision.to_string() });
        if let Some(limit) = limit {
            items.truncate(limit);
            metadata["continue"] = items.last().map(|(at, _)| at.clone()).unwrap_or_default().into();
        }
        json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items.into_iter().map(|(_, o)| o).collect::<Vec<_>>() })
    }

    fn create(&mut self, target: &mut Target, mut object: Value) -> Result<Value, Status> {
        if let (None, Some(prefix)) = (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
            object["metadata"]["name"] = format!("{prefix}{:05}", self.revision + 1).into();
        }
        target.name = object["metadata"]["name"].as_str().ok_or_else(|| Status::bad_request("name or generateName is required"))?.into();
        if self.objects.contains_key(&target.key()) {
            return Err(Status::already_exists("", target.plural(), &target.name));
        }
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = target.namespace.clone().into();
        }
        object["metadata"]["uid"] = format!("uid-{}", self.revision + 1).into();
        Ok(self.step("ADDED", target, object, None))
    }

    fn update(&mut self, target: &Target, mut object: Value) -> Result<Value, Status> {
        let old = self.objects.get(&target.key()).cloned().ok_or_else(|| target.not_found())?;
        let wanted = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !wanted.is_empty() && old["metadata"]["resourceVersion"] != wanted {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Status::conflict("", target.plural(), &target.name, why));
        }
        if target.subresource == "status" {
            let status = object["status"].take();
            object = old.clone();
            object["status"] = status;
        } else if !target.subresource.is_empty() {
            return Ok(object);
        }
        for kept in ["uid", "deletionTimestamp"] {
            if !old["metadata"][kept].is_null() {
                object["metadata"][kept] = old["metadata"][kept].clone();
            }
        }
        object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        let leaving = !object["metadata"]["deletionTimestamp"].is_null() && finalizers(&object) == 0;
        if object == old && !leaving {
            return Ok(old);
        }
        Ok(self.step(if leaving { "DELETED" } else { "MODIFIED" }, target, object, Some(old)))
    }

    fn delete(&mut self, target: &Target, options: &Value) -> Result<Value, Status> {
        let mut object = self.objects.get(&target.key()).cloned().ok_or_else(|| target.not_found())?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if !wanted.is_null() && object["metadata"][field] != *wanted {
                return Err(Status::conflict("", target.plural(), &target.name, &format!("Precondition failed: {field}")));
            }
        }
        if finalizers(&object) == 0 {
            return Ok(self.step("DELETED", target, object.clone(), Some(object)));
        }
        let old = object.clone();
        object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        Ok(self.step("MODIFIED", target, object, Some(old)))
    }
}

fn finalizers(object: &Value) -> usize {
    object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(object) = into.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge(&mut into[key], value);
        }
    }
}

impl FakeServer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn client(&self) -> Client {
        Client::new(Arc::new(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wake(&self) {
        self.0.woken.send_modify(|n| *n += 1);
    }

    /// The next requests fail like this, one each.
    pub fn fail_next(&self, status: Status) {
        self.lock().failures.push_back(status);
    }

    /// Ends all open watches, as a restarting server does.
    pub fn cut_watches(&self) {
        self.lock().cuts += 1;
        self.wake();
    }

    /// Forgets all history: watches from before answer 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.revision;
        state.history.clear();
    }

    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// `METHOD path?query` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// All objects of a collection (`/api/v1/pods`), by namespace and name.
    pub fn objects(&self, collection: &str) -> Vec<Value> {
        self.lock().objects.iter().filter(|((c, _, _), _)| c == collection).map(|(_, o)| o.clone()).collect()
    }

    fn watch(&self, target: Target, query: Query) -> Result<Body, Status> {
        let (cuts, mut next) = {
            let state = self.lock();
            let from = query.get("resourceVersion");
            let from = if from.is_empty() { state.revision } else { from.parse().map_err(|_| Status::bad_request("resourceVersion"))? };
            if from < state.compacted {
                return Err(Status::expired(format!("too old resource version: {from} ({})", state.compacted)));
            }
            (state.cuts, from)
        };
        let (server, mut woken) = (self.clone(), self.0.woken.subscribe());
        let stream = async_stream(move |out| async move {
            loop {
                woken.borrow_and_update();
                let steps: Vec<(u64, Step)> = {
                    let state = server.lock();
                    if state.cuts != cuts {
                        return;
                    }
                    let fresh = state.history.iter().filter(|(at, _)| *at > next);
                    fresh.filter(|(_, s)| s.collection == target.collection).cloned().collect()
                };
                for (at, step) in steps {
                    next = at;
                    let visible = target.namespace.is_empty() || target.namespace == step.namespace;
                    if let Some(line) = visible.then(|| event(&query, &step)).flatten()
                        && out.send(line).await.is_err()
                    {
                        return;
                    }
                }
                tokio::select! {
                    biased;
                    () = out.closed() => return,
                    changed = woken.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(stream)
    }
}

/// A body fed by a task.
fn async_stream<F, Fut>(feed: F) -> Body
where
    F: FnOnce(tokio::sync::mpsc::Sender<Bytes>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (tx, mut rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(feed(tx));
    let frames = futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx).map(|line| line.map(|l| Ok(hyper::body::Frame::data(l)))));
    StreamBody::new(frames).boxed_unsync()
}

/// What a watcher with selectors sees of a step: objects enter and leave its view.
fn event(query: &Query, step: &Step) -> Option<Bytes> {
    let was = step.before.as_ref().is_some_and(|b| query.matches(b));
    let is = step.kind != "DELETED" && query.matches(&step.object);
    let kind = match (was, is) {
        (false, false) => return None,
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
    };
    Some(format!("{}\n", json!({ "type": kind, "object": step.object })).into())
}

#[async_trait]
impl Transport for FakeServer {
    async fn send(&self, request: Request<Bytes>) -> io::Result<Response<Body>> {
        let answer = |code: u16, value: &Value| {
            let body = Full::new(Bytes::from(value.to_string())).map_err(|e| match e {}).boxed_unsync();
            Response::builder().status(code).body(body).map_err(io::Error::other)
        };
        let failed = |s: Status| answer(s.code, &serde_json::to_value(&s).map_err(io::Error::other)?);
        let query = Query::parse(request.uri().query());
        let injected = {
            let mut state = self.lock();
            state.requests.push(format!("{} {}", request.method(), request.uri()));
            state.failures.pop_front()
        };
        if let Some(status) = injected {
            return failed(status);
        }
        let Some(mut target) = Target::parse(request.uri().path()) else {
            return failed(Status::new(api::Reason::NotFound, "the server could not find the requested resource"));
        };
        if matches!(query.get("watch"), "true" | "1") {
            return match self.watch(target, query) {
                Ok(body) => Response::builder().status(200).body(body).map_err(io::Error::other),
                Err(status) => failed(status),
            };
        }
        let content_type = request.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let done = self.lock().call(request.method(), &mut target, &query, content_type, request.body());
        self.wake();
        match done {
            Ok((code, value)) => answer(code, &value),
            Err(status) => failed(status),
        }
    }
}
