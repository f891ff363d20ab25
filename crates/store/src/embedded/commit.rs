//! The committer: one thread, the only writer of log and index.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use redb::{Database, Durability};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::record::{Body, Position, Record};
use super::{LOG, Opener, Shared, load};
use crate::limits::{COMPACT_PER_COMMIT, GROUP_BYTES_MAX, GROUP_TXNS_MAX, RETRY_INTERVAL};
use crate::memory::Watchers;
use crate::{Batch, Entry, Error, Event, Revision, Write, check};

pub(super) enum Command {
    Txn { writes: Vec<Write>, reply: oneshot::Sender<Result<Revision, Error>> },
    Watch { after: Revision, reply: oneshot::Sender<Result<mpsc::Receiver<Batch>, Error>> },
    Compact { to: Revision, reply: oneshot::Sender<()> },
}

type Txn = (Vec<Write>, oneshot::Sender<Result<Revision, Error>>);

pub(super) struct Committer {
    shared: Arc<Shared>,
    opener: Opener,
    watchers: Watchers,
    /// When and why the last write failed, until one succeeds.
    failing: Option<(Instant, String)>,
}

/// A group on its way to disk.
struct Group {
    rows: Vec<(Position, Vec<u8>)>,
    events: Vec<Event>,
    /// What keys are after the group, where it changes them.
    overlay: BTreeMap<String, Option<Entry>>,
    places: BTreeMap<String, Position>,
    revision: Revision,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, opener: Opener) -> Self {
        Self { shared, opener, watchers: Watchers::default(), failing: None }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            let mut txns: Vec<Txn> = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match command {
                    Command::Txn { writes, reply } => {
                        bytes += writes.iter().filter_map(|w| w.value.as_ref()).map(Bytes::len).sum::<usize>();
                        txns.push((writes, reply));
                    }
                    // Whoever asks something sees all that was written before.
                    other => {
                        self.commit(std::mem::take(&mut txns));
                        self.answer(other);
                    }
                }
                if txns.len() < GROUP_TXNS_MAX && bytes < GROUP_BYTES_MAX {
                    next = queue.try_recv().ok();
                }
            }
            self.commit(txns);
        }
    }

    fn answer(&mut self, command: Command) {
        match command {
            Command::Txn { .. } => {}
            Command::Watch { after, reply } => {
                let _ = reply.send(self.watch(after));
            }
            Command::Compact { to, reply } => {
                self.shared.index_mut().forget(to);
                let _ = reply.send(());
            }
        }
    }

    fn watch(&mut self, after: Revision) -> Result<mpsc::Receiver<Batch>, Error> {
        let (compacted, revision) = {
            let index = self.shared.index();
            (index.compacted, index.revision)
        };
        if after < compacted {
            return Err(Error::Compacted(after));
        }
        let past = if after < revision { self.shared.events(&*self.shared.database()?, after)? } else { Vec::new() };
        Ok(self.watchers.add(after, past))
    }

    fn commit(&mut self, txns: Vec<Txn>) {
        if txns.is_empty() {
            return;
        }
        if let Err(error) = self.ready() {
            return txns.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
        }
        let outcome = self.stage(txns).and_then(|(group, replies)| match self.write(&group) {
            Ok(trimmed) => {
                self.publish(group, trimmed);
                Ok(replies)
            }
            Err(why) => Err((why, replies.into_iter().map(|(reply, _)| reply).collect())),
        });
        match outcome {
            Ok(replies) => replies.into_iter().for_each(|(reply, result)| drop(reply.send(result))),
            Err((why, replies)) => {
                tracing::error!(why, "the store cannot write");
                self.failing = Some((Instant::now(), why.clone()));
                self.reopen(&why);
                replies.into_iter().for_each(|reply| drop(reply.send(Err(Error::ReadOnly(why.clone())))));
            }
        }
    }

    /// Whether a write may be tried now.
    fn ready(&mut self) -> Result<(), Error> {
        if let Some((at, why)) = self.failing.clone() {
            if at.elapsed() < RETRY_INTERVAL {
                return Err(Error::ReadOnly(why));
            }
            if self.shared.database().is_err() {
                self.reopen(&why);
            }
        }
        match self.shared.database() {
            Ok(_) => Ok(()),
            Err(error) => {
                self.failing = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }
}

type Replies = Vec<(oneshot::Sender<Result<Revision, Error>>, Result<Revision, Error>)>;
type Failed = (String, Vec<oneshot::Sender<Result<Revision, Error>>>);

impl Committer {
    /// Decides each transaction against the index and those before it, and makes the rows and events of the accepted.
    fn stage(&self, txns: Vec<Txn>) -> Result<(Group, Replies), Failed> {
        let revision = self.shared.index().revision;
        let mut group = Group { rows: Vec::new(), events: Vec::new(), overlay: BTreeMap::new(), places: BTreeMap::new(), revision };
        let mut replies: Replies = Vec::new();
        let mut txns = txns.into_iter();
        while let Some((writes, reply)) = txns.next() {
            let result = match self.admit(&group, &writes) {
                Ok(()) => self.append(&mut group, writes),
                refused => refused,
            };
            match result {
                // The disk, not the request: nobody in this group can be told anything else.
                Err(Error::Open(why)) => {
                    let rest = txns.map(|(_, reply)| reply);
                    return Err((why, replies.into_iter().map(|(r, _)| r).chain([reply]).chain(rest).collect()));
                }
                result => replies.push((reply, result.map(|()| group.revision))),
            }
        }
        Ok((group, replies))
    }

    fn found(&self, group: &Group, key: &str) -> Option<Position> {
        match group.overlay.get(key) {
            Some(None) => None,
            Some(Some(_)) => group.places.get(key).copied(),
            None => self.shared.index().at.get(key).map(|place| place.at),
        }
    }

    fn admit(&self, group: &Group, writes: &[Write]) -> Result<(), Error> {
        for (i, write) in writes.iter().enumerate() {
            if writes[..i].iter().any(|w| w.key == write.key) {
                let found = Some(group.revision + 1);
                return Err(Error::Conflict { key: write.key.clone(), expected: write.expect.clone(), found });
            }
            check(write, self.found(group, &write.key).map(|at| at.0))?;
        }
        Ok(())
    }

    fn append(&self, group: &mut Group, writes: Vec<Write>) -> Result<(), Error> {
        if writes.is_empty() {
            return Ok(());
        }
        // Everything that can fail comes before anything is changed.
        let mut ready = Vec::with_capacity(writes.len());
        for write in writes {
            let previous = match group.overlay.get(&write.key) {
                Some(entry) => entry.clone(),
                None => self.shared.get(&write.key).map_err(|e| Error::Open(e.to_string()))?,
            };
            let sealed = match (&write.value, self.shared.sealed(&write.key)) {
                (Some(value), Some(keyring)) => Some(keyring.seal(&write.key, value)?),
                _ => None,
            };
            ready.push((write, previous, sealed));
        }
        let (revision, compacted) = (group.revision + 1, self.shared.index().compacted);
        group.revision = revision;
        for (number, (Write { key, value, .. }, previous, sealed)) in ready.into_iter().enumerate() {
            let body = match (&value, &sealed) {
                (_, Some(sealed)) => Body::Sealed(sealed),
                (Some(value), None) => Body::Plain(value),
                (None, None) => Body::Deleted,
            };
            let at = (revision, number as u32);
            let record = Record { key: &key, body, previous: self.found(group, &key), compacted };
            group.rows.push((at, record.encode()));
            group.places.insert(key.clone(), at);
            let entry = value.map(|value| Entry { key: key.clone(), value, revision });
            group.overlay.insert(key.clone(), entry.clone());
            match (entry, previous) {
                (Some(entry), previous) => group.events.push(Event::Put { entry, previous: previous.map(|p| p.value) }),
                (None, Some(previous)) => group.events.push(Event::Delete { key, revision, previous }),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Makes a group durable, and trims what history lost before it. Tells how many rows that were.
    fn write(&self, group: &Group) -> Result<usize, String> {
        if group.rows.is_empty() {
            return Ok(0);
        }
        let database = self.shared.database().map_err(|e| e.to_string())?;
        let old: Vec<Position> = self.shared.index().trimmable(COMPACT_PER_COMMIT).collect();
        write_rows(&database, &group.rows, &old).map_err(|e| e.to_string())?;
        Ok(old.len())
    }

    fn publish(&mut self, group: Group, trimmed: usize) {
        if group.rows.is_empty() {
            return;
        }
        if self.failing.take().is_some() {
            tracing::info!("the store can write again");
        }
        let mut index = self.shared.index_mut();
        index.trimmed(trimmed);
        for (at, row) in &group.rows {
            // It was encoded a moment ago.
            if let Ok(record) = Record::decode(row) {
                index.add(*at, &record, row.len());
            }
        }
        index.bound(self.shared.options.history_events, self.shared.options.history_bytes);
        drop(index);
        self.watchers.tell(&group.events.into());
    }

    /// After a failed write: closes the file, opens it again and takes stock. What is in it beyond what was acknowledged is
    /// published; if something acknowledged is missing, the store stays shut.
    fn reopen(&mut self, why: &str) {
        let set = |database| *self.shared.database.write().unwrap_or_else(PoisonError::into_inner) = database;
        set(Err(why.to_string()));
        let opened = (self.opener)().map_err(|e| super::explain(&e)).and_then(|database| {
            let index = load(&database).map_err(|e| e.to_string())?;
            Ok((database, index))
        });
        let (database, index) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(error, "the store cannot be opened again");
                return;
            }
        };
        let known = self.shared.index().revision;
        if index.revision < known {
            let lost = format!("the disk lost acknowledged writes: it ends at revision {}, not {known}", index.revision);
            tracing::error!("{lost}");
            return set(Err(lost));
        }
        let late = if index.revision > known { self.shared.events(&database, known) } else { Ok(Vec::new()) };
        match late {
            Ok(late) => {
                let compacted = self.shared.index().compacted;
                let mut index = index;
                index.forget(compacted);
                *self.shared.index_mut() = index;
                set(Ok(Arc::new(database)));
                self.watchers.tell(&late.into());
            }
            Err(error) => tracing::error!(%error, "the store cannot be read again"),
        }
    }
}

fn write_rows(database: &Database, rows: &[(Position, Vec<u8>)], old: &[Position]) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    {
        let mut log = txn.open_table(LOG)?;
        for at in old {
            log.remove(at)?;
        }
        for (at, row) in rows {
            log.insert(at, row.as_slice())?;
        }
    }
    txn.commit()?;
    Ok(())
}
