//! Recent changes of one kind, shared by all its watchers.
//!
//! A watcher is a position in the ring, nothing more: it costs no memory while it lags, and when the ring has moved past
//! it, it is told so (410) and lists again. Nobody waits for a slow watcher.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, RwLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::encode::{self, EventType};
use super::{Object, Snapshot};
use crate::limits::{RING_BYTES_MAX, RING_EVENTS_MAX, RING_EVENTS_MIN, RING_FRESH, WATCH_EVENTS_AT_ONCE};
use crate::{Error, Revision};

/// What happened to one object at one revision.
#[derive(Debug)]
pub struct Change {
    pub revision: Revision,
    /// The object now; of a deletion its last state, under the deletion's revision.
    pub object: Arc<Object>,
    /// The object before; `None` if it is new.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
    encoded: OnceLock<Bytes>,
}

impl Change {
    pub(super) fn new(object: Arc<Object>, previous: Option<Arc<Object>>, deleted: bool) -> Self {
        Self { revision: object.revision, object, previous, deleted, encoded: OnceLock::new() }
    }

    pub fn kind(&self) -> EventType {
        match (&self.previous, self.deleted) {
            (_, true) => EventType::Deleted,
            (None, false) => EventType::Added,
            (Some(_), false) => EventType::Modified,
        }
    }

    /// The event as a watcher without selectors sees it; encoded once, shared by all.
    pub fn encoded(&self) -> Bytes {
        self.encoded.get_or_init(|| encode::event(self.kind(), &self.object)).clone()
    }

    /// The event as a watcher sees it whose selectors are `matches`: an object that enters its view is ADDED, one that
    /// leaves is DELETED (with its last state within the view, under this revision), others are not its affair.
    pub fn seen_by(&self, matches: impl Fn(&Object) -> bool) -> Option<(EventType, Arc<Object>)> {
        let was = self.previous.as_deref().is_some_and(&matches);
        let is = !self.deleted && matches(&self.object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some((EventType::Added, self.object.clone())),
            (true, true) => Some((EventType::Modified, self.object.clone())),
            (true, false) if self.deleted => Some((EventType::Deleted, self.object.clone())),
            (true, false) => {
                let last = self.previous.as_ref().unwrap_or(&self.object);
                Some((EventType::Deleted, Arc::new(last.at_revision(self.revision))))
            }
        }
    }
}

pub(super) struct Ring {
    state: RwLock<State>,
    woken: watch::Sender<()>,
}

struct State {
    changes: VecDeque<(Instant, Arc<Change>)>,
    /// The number of the first of `changes`; numbers never repeat.
    first: u64,
    /// Watches may start after this revision and after every later one.
    since: Revision,
    bytes: usize,
}

impl Ring {
    pub(super) fn new(since: Revision) -> Self {
        let state = State { changes: VecDeque::new(), first: 0, since, bytes: 0 };
        Self { state: RwLock::new(state), woken: watch::Sender::new(()) }
    }

    pub(super) fn push(&self, change: Arc<Change>, now: Instant) {
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        state.bytes += change.object.bytes();
        state.changes.push_back((now, change));
        while let Some((at, _)) = state.changes.front() {
            let old = state.changes.len() > RING_EVENTS_MIN && now.duration_since(*at) > RING_FRESH;
            if !old && state.changes.len() <= RING_EVENTS_MAX && state.bytes <= RING_BYTES_MAX {
                break;
            }
            if let Some((_, gone)) = state.changes.pop_front() {
                state.bytes -= gone.object.bytes();
                state.since = gone.revision;
                state.first += 1;
            }
        }
    }

    /// Everything before `revision` is unknown: all watchers are cut off.
    pub(super) fn reset(&self, revision: Revision) {
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        state.first += state.changes.len() as u64 + 1;
        state.changes.clear();
        state.bytes = 0;
        state.since = revision;
        drop(state);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.woken.send_replace(());
    }

    /// The number of the first change after a revision.
    fn position(&self, after: Revision) -> Result<u64, Error> {
        let state = self.state.read().unwrap_or_else(|e| e.into_inner());
        if after < state.since {
            return Err(Error::Compacted(after));
        }
        Ok(state.first + state.changes.partition_point(|(_, c)| c.revision <= after) as u64)
    }
}

/// One watch over a prefix. Cancel safe.
pub struct Watcher {
    ring: Arc<Ring>,
    woken: watch::Receiver<()>,
    published: Arc<ArcSwap<Snapshot>>,
    prefix: Box<str>,
    next: u64,
    /// All changes up to here were given.
    told: Revision,
}

impl Watcher {
    pub(super) fn new(ring: Arc<Ring>, published: Arc<ArcSwap<Snapshot>>, prefix: &str, after: Revision) -> Result<Self, Error> {
        let (woken, next) = (ring.woken.subscribe(), ring.position(after)?);
        Ok(Self { ring, woken, published, prefix: prefix.into(), next, told: after })
    }

    /// The next changes, at least one, in order. [`Error::Compacted`]: this watcher was too slow and has missed some.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Error> {
        loop {
            self.woken.borrow_and_update();
            let changes = self.take()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            if self.woken.changed().await.is_err() {
                return Err(Error::Closed);
            }
        }
    }

    /// What is there now, perhaps nothing.
    pub fn take(&mut self) -> Result<Vec<Arc<Change>>, Error> {
        // Only what readers can see already: who is told of a change and then reads must find it.
        let published = self.published.load().revision;
        let state = self.ring.state.read().unwrap_or_else(|e| e.into_inner());
        if self.next < state.first {
            return Err(Error::Compacted(self.told));
        }
        let mut out = Vec::new();
        let from = usize::try_from(self.next - state.first).unwrap_or(usize::MAX);
        for (_, change) in state.changes.iter().skip(from).take_while(|(_, c)| c.revision <= published) {
            self.next += 1;
            self.told = change.revision;
            if change.object.key.starts_with(&*self.prefix) {
                out.push(change.clone());
                if out.len() >= WATCH_EVENTS_AT_ONCE {
                    return Ok(out);
                }
            }
        }
        self.told = self.told.max(published);
        Ok(out)
    }

    /// For bookmarks, after the changes given so far were sent: nothing of this prefix up to here is untold.
    pub fn told(&self) -> Revision {
        self.told
    }
}
