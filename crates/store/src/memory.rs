//! The store in memory, for tests and the simulator. Nothing survives it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::limits::{HISTORY_EVENTS_MAX, WATCH_BATCHES};
use crate::{Batch, Entry, Error, Event, Revision, Store, Write, check};

#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, (Bytes, Revision)>,
    revision: Revision,
    compacted: Revision,
    history: VecDeque<Event>,
    watchers: Watchers,
    failing: Option<String>,
}

/// Who is told of new events. A reader whose channel is full is dropped: it sees its channel close.
#[derive(Default)]
pub(crate) struct Watchers(Vec<(Revision, mpsc::Sender<Batch>)>);

impl Watchers {
    /// A new reader; `past` is what it asked for of the time before now.
    pub(crate) fn add(&mut self, after: Revision, past: Vec<Event>) -> mpsc::Receiver<Batch> {
        let (tx, rx) = mpsc::channel(WATCH_BATCHES + 1);
        if !past.is_empty() {
            // There is room: the channel is new.
            let _ = tx.try_send(past.into());
        }
        self.0.push((after, tx));
        rx
    }

    pub(crate) fn tell(&mut self, batch: &Batch) {
        let Some(last) = batch.last().map(Event::revision) else { return };
        self.0.retain(|(after, tx)| last <= *after || tx.try_send(batch.clone()).is_ok());
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes writes fail as on a full disk, until `None`.
    pub fn fail_writes(&self, why: Option<&str>) {
        self.lock().failing = why.map(String::from);
    }
}

impl State {
    fn entry(&self, key: &str) -> Option<Entry> {
        let (value, revision) = self.entries.get(key)?;
        Some(Entry { key: key.into(), value: value.clone(), revision: *revision })
    }

    fn apply(&mut self, revision: Revision, write: Write) -> Option<Event> {
        let previous = self.entry(&write.key);
        let Some(value) = write.value else {
            self.entries.remove(&write.key);
            return previous.map(|previous| Event::Delete { key: write.key, revision, previous });
        };
        self.entries.insert(write.key.clone(), (value.clone(), revision));
        Some(Event::Put { entry: Entry { key: write.key, value, revision }, previous: previous.map(|p| p.value) })
    }

    /// Whole revisions only: what remains is all of what comes after `compacted`.
    fn forget(&mut self, to: Revision) {
        self.compacted = self.compacted.max(to.min(self.revision));
        while self.history.front().is_some_and(|e| e.revision() <= self.compacted) {
            self.history.pop_front();
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn txn(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        let mut state = self.lock();
        if writes.is_empty() {
            return Ok(state.revision);
        }
        let revision = state.revision + 1;
        for (i, write) in writes.iter().enumerate() {
            let twice = writes[..i].iter().any(|w| w.key == write.key);
            let found = if twice { Some(revision) } else { state.entries.get(&write.key).map(|(_, r)| *r) };
            check(write, found)?;
            if twice {
                return Err(Error::Conflict { key: write.key.clone(), expected: write.expect.clone(), found });
            }
        }
        if let Some(why) = &state.failing {
            return Err(Error::ReadOnly(why.clone()));
        }
        state.revision = revision;
        let events: Vec<Event> = writes.into_iter().filter_map(|w| state.apply(revision, w)).collect();
        state.history.extend(events.iter().cloned());
        while state.history.len() > HISTORY_EVENTS_MAX
            && let Some(oldest) = state.history.front().map(Event::revision)
        {
            state.forget(oldest);
        }
        state.watchers.tell(&events.into());
        Ok(revision)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.lock().entry(key))
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        let state = self.lock();
        let within = state.entries.range(prefix.to_string()..).take_while(|(key, _)| key.starts_with(prefix));
        let entries = within.map(|(key, (value, revision))| Entry { key: key.clone(), value: value.clone(), revision: *revision });
        Ok((entries.collect(), state.revision))
    }

    async fn watch(&self, after: Revision) -> Result<mpsc::Receiver<Batch>, Error> {
        let mut state = self.lock();
        if after < state.compacted {
            return Err(Error::Compacted(after));
        }
        let past = state.history.iter().filter(|e| e.revision() > after).cloned().collect();
        Ok(state.watchers.add(after, past))
    }

    async fn compact(&self, to: Revision) -> Result<(), Error> {
        self.lock().forget(to);
        Ok(())
    }

    async fn history(&self) -> Range<Revision> {
        let state = self.lock();
        state.compacted..state.revision + 1
    }
}
