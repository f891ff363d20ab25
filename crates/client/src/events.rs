//! Events (core/v1): what happened to an object, told to its users, counted instead of repeated.
//!
//! Recording never waits and never fails the caller: a full queue or a refused write is a line in the log.

use std::collections::{BTreeMap, VecDeque};

use base::{Ids, SharedClock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;

use crate::client::{Client, Kind, Patch};
use crate::limits::{RECORDER_BURST, RECORDER_MEMORY, RECORDER_QUEUE, RECORDER_REFILL};

/// A reference to a whole object, as events and conditions want it.
pub fn reference<K: Kind>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.into()),
        kind: Some(K::KIND.into()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Writes Events in the background. Cheap to clone; the last one to go ends the task once its queue is written.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
    clock: SharedClock,
}

impl Recorder {
    /// `component` as upstream names them (`kubelet`, `default-scheduler`, `deployment-controller`); `host` only for
    /// agents, else empty.
    pub fn start(client: &Client, clock: SharedClock, ids: Ids, component: &str, host: &str) -> Self {
        let (notes, queue) = mpsc::channel(RECORDER_QUEUE);
        let writer = Writer { client: client.clone(), ids, component: component.into(), host: host.into(), memory: Memory::default() };
        tokio::spawn(writer.run(queue));
        Self { notes, clock }
    }

    pub fn normal(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record("Normal", about, reason, message.into());
    }

    pub fn warning(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record("Warning", about, reason, message.into());
    }

    fn record(&self, kind: &'static str, about: &ObjectReference, reason: &str, message: String) {
        let note = Note { about: about.clone(), kind, reason: reason.into(), message, at: self.clock.now() };
        if let Err(e) = self.notes.try_send(note) {
            tracing::warn!(reason, "event dropped: {e}");
        }
    }
}

/// Events are the same when all of this is: kind, namespace, name, uid, field path; type, reason, message.
type Same = ([String; 5], &'static str, String, String);

struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
}

/// What was written, oldest out first.
#[derive(Default)]
struct Memory {
    seen: BTreeMap<Same, Seen>,
    order: VecDeque<Same>,
    buckets: BTreeMap<[String; 5], Bucket>,
}

struct Bucket {
    tokens: u32,
    filled: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp) -> bool {
        let refills = now.duration_since(self.filled).as_secs() / RECORDER_REFILL.as_secs() as i64;
        if refills > 0 {
            self.tokens = RECORDER_BURST.min(self.tokens.saturating_add(u32::try_from(refills).unwrap_or(u32::MAX)));
            self.filled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

impl Memory {
    fn allows(&mut self, about: &[String; 5], now: Timestamp) -> bool {
        if self.buckets.len() >= RECORDER_MEMORY {
            self.buckets.clear();
        }
        self.buckets.entry(about.clone()).or_insert(Bucket { tokens: RECORDER_BURST, filled: now }).take(now)
    }

    fn remember(&mut self, same: Same, seen: Seen) {
        if self.seen.insert(same.clone(), seen).is_none() {
            self.order.push_back(same);
        }
        if self.order.len() > RECORDER_MEMORY
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

struct Writer {
    client: Client,
    ids: Ids,
    component: String,
    host: String,
    memory: Memory,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Note>) {
        while let Some(note) = queue.recv().await {
            let (reason, object) = (note.reason.clone(), note.about.name.clone().unwrap_or_default());
            if let Err(error) = self.write(note).await {
                tracing::warn!(reason, object, %error, "event not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), crate::Error> {
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let r = &note.about;
        let about = [text(&r.kind), text(&r.namespace), text(&r.name), text(&r.uid), text(&r.field_path)];
        if !self.memory.allows(&about, note.at) {
            return Ok(());
        }
        let same: Same = (about, note.kind, note.reason.clone(), note.message.clone());
        // Events of cluster-scoped objects live in `default`, as upstream's.
        let namespace = r.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into());
        if let Some(seen) = self.memory.seen.get_mut(&same) {
            seen.count = seen.count.saturating_add(1);
            let patch = Patch::Merge(json!({ "count": seen.count, "lastTimestamp": base::rfc3339(note.at) }));
            match self.client.patch::<Event>(&namespace, &seen.name, &patch, "").await {
                // It expired meanwhile: write it anew, the count goes on.
                Err(e) if e.is_not_found() => {}
                done => return done.map(drop),
            }
        }
        let (count, first) = self.memory.seen.get(&same).map_or((1, note.at), |seen| (seen.count, seen.first));
        let event = self.event(&note, namespace, count, first);
        let name = event.metadata.name.clone().unwrap_or_default();
        self.client.create(&event).await?;
        self.memory.remember(same, Seen { name, count, first });
        Ok(())
    }

    fn event(&self, note: &Note, namespace: String, count: i32, first: Timestamp) -> Event {
        let about = note.about.name.as_deref().unwrap_or_default();
        let host = (!self.host.is_empty()).then(|| self.host.clone());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{:016x}", self.ids.next_u64())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            type_: Some(note.kind.into()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            count: Some(count),
            first_timestamp: Some(Time(first)),
            last_timestamp: Some(Time(note.at)),
            source: Some(EventSource { component: Some(self.component.clone()), host: host.clone() }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: host,
            ..Event::default()
        }
    }
}
