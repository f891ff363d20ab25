//! The store on disk: a log in redb, one thread that commits, everybody else waits for it together.
//!
//! Group commit: the committer takes all waiting transactions, checks them against the index in memory (each sees those
//! before it), writes them in one durable redb transaction, and only then acknowledges, publishes and answers, conflicts
//! too: a conflict with something that was not written in the end would be a lie.
//!
//! When the disk refuses (full, I/O error), all writes of that group fail with [`Error::ReadOnly`], the file is opened
//! anew, and a write is tried again at most every second; the store recovers by itself when the disk does. A write that
//! failed but turns out to be on disk after all is then published like any other: its outcome was unknown, not wrong.

mod commit;
mod record;

use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::limits::{COMMIT_QUEUE, ENGINE_CACHE_BYTES, HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX, SHRINK_BYTES_MIN, SHRINK_FACTOR};
use crate::seal::Keyring;
use crate::{Batch, Entry, Error, Event, Revision, Store, Write};
use commit::{Command, Committer};
use record::{Body, Index, Position, Record};

/// A view of the log that does not change.
type Log = ReadOnlyTable<Position, &'static [u8]>;

const LOG: TableDefinition<'static, Position, &'static [u8]> = TableDefinition::new("log");

/// Opens the engine's file; called again after a failed write.
pub type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

pub struct Options {
    /// Seals values under `sealed`; without one they are stored in the clear.
    pub keyring: Option<Keyring>,
    /// Prefixes of keys whose values are encrypted.
    pub sealed: Vec<String>,
    /// How much of the past is kept for watches to resume from.
    pub history_events: usize,
    pub history_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { keyring: None, sealed: vec!["core/secrets/".into()], history_events: HISTORY_EVENTS_MAX, history_bytes: HISTORY_BYTES_MAX }
    }
}

/// See the module's text. Dropping it waits for the commit under way and closes the file.
pub struct Embedded {
    commands: Option<mpsc::Sender<Command>>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    /// `None` while the file could not be opened again; the text says why.
    database: RwLock<Result<Arc<Database>, String>>,
    index: RwLock<Index>,
    options: Options,
}

fn damaged(e: impl std::fmt::Display) -> Error {
    Error::Open(format!("the store cannot be read: {e}"))
}

impl Embedded {
    /// Opens or makes the store in a directory, `<data>/store`. The caller holds the data directory's lock.
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::Open(format!("store: {}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(|e| failed(&e))?;
        let path = dir.join("log.redb");
        Self::open_file(path, options).map_err(|e| match e {
            Error::Open(text) => failed(&text),
            other => other,
        })
    }

    fn open_file(path: PathBuf, options: Options) -> Result<Self, Error> {
        if !path.exists() {
            create(&path)?;
        }
        let file = path.clone();
        let opener: Opener = Box::new(move || {
            // After a failed fsync the kernel's cached pages are not what is on disk: read them from there.
            if let Ok(file) = std::fs::File::open(&file) {
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            }
            engine().open(&file)
        });
        let (mut database, index) = start(&opener)?;
        // Give the disk back what a past peak took, when that is most of the file.
        let length = std::fs::metadata(&path).map_or(0, |m| m.len());
        if length > SHRINK_BYTES_MIN && length > SHRINK_FACTOR * index.bytes as u64 {
            tracing::info!(file_bytes = length, live_bytes = index.bytes, "rewriting the store's file");
            database.compact().map_err(damaged)?;
        }
        Self::run(database, index, opener, options)
    }

    /// On any file, for tests of what a disk can do.
    pub fn open_with(opener: Opener, options: Options) -> Result<Self, Error> {
        let (database, index) = start(&opener)?;
        Self::run(database, index, opener, options)
    }

    fn run(database: Database, index: Index, opener: Opener, options: Options) -> Result<Self, Error> {
        let shared = Shared { database: RwLock::new(Ok(Arc::new(database))), index: RwLock::new(index), options };
        let shared = Arc::new(shared);
        let (commands, queue) = mpsc::channel(COMMIT_QUEUE);
        let committer = Committer::new(shared.clone(), opener);
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || committer.run(queue))
            .map_err(|e| Error::Open(format!("no thread for the store: {e}")))?;
        Ok(Self { commands: Some(commands), shared, thread: Some(thread) })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Closed)?;
        commands.send(command(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(&self, f: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || f(&shared)).await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn explain(e: &redb::DatabaseError) -> String {
    match e {
        redb::DatabaseError::DatabaseAlreadyOpen => "another process has it open".into(),
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(why)) => {
            format!("the file is damaged ({why}): restore a backup, or move it away to start empty")
        }
        redb::DatabaseError::UpgradeRequired(version) => format!("the file has engine format {version}, which this binary cannot read"),
        other => other.to_string(),
    }
}

fn open_log(database: &Database) -> Result<Option<Log>, Error> {
    match database.begin_read().map_err(damaged)?.open_table(LOG) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(damaged(e)),
    }
}

fn engine() -> redb::Builder {
    let mut engine = redb::Builder::new();
    // A file that changed behind our back is then an error, where otherwise it would be believed.
    engine.set_cache_size(ENGINE_CACHE_BYTES).set_check_integrity_on_open(true);
    engine
}

/// Makes the engine's file under another name first: power loss meanwhile leaves none, not half of one.
fn create(path: &Path) -> Result<(), Error> {
    let new = path.with_extension("new");
    let made = || -> std::io::Result<()> {
        if new.exists() {
            std::fs::remove_file(&new)?;
        }
        engine().create(&new).map_err(|e| std::io::Error::other(explain(&e)))?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    made().map_err(|e| Error::Open(e.to_string()))
}

fn start(opener: &Opener) -> Result<(Database, Index), Error> {
    let database = opener().map_err(|e| Error::Open(explain(&e)))?;
    let index = load(&database)?;
    Ok((database, index))
}

/// Builds the index from the log.
fn load(database: &Database) -> Result<Index, Error> {
    let mut index = Index::default();
    let Some(log) = open_log(database)? else { return Ok(index) };
    for row in log.range::<Position>(..).map_err(damaged)? {
        let (at, bytes) = row.map_err(damaged)?;
        index.add(at.value(), &Record::decode(bytes.value())?, bytes.value().len());
    }
    Ok(index)
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> Result<Arc<Database>, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().cloned().map_err(|why| Error::ReadOnly(why.clone()))
    }

    fn sealed(&self, key: &str) -> Option<&Keyring> {
        let keyring = self.options.keyring.as_ref()?;
        self.options.sealed.iter().any(|prefix| key.starts_with(prefix.as_str())).then_some(keyring)
    }

    fn value(&self, record: &Record<'_>) -> Result<Option<Bytes>, Error> {
        match record.body {
            Body::Deleted => Ok(None),
            Body::Plain(bytes) => Ok(Some(Bytes::copy_from_slice(bytes))),
            Body::Sealed(bytes) => match &self.options.keyring {
                Some(keyring) => Ok(Some(keyring.unseal(record.key, bytes)?.into())),
                None => Err(Error::Open(format!("{}: encrypted, and no encryption keys are given", record.key))),
            },
        }
    }

    fn entry(&self, log: &Log, at: Position) -> Result<Option<Entry>, Error> {
        let Some(row) = log.get(at).map_err(damaged)? else { return Ok(None) };
        let record = Record::decode(row.value())?;
        let value = self.value(&record)?;
        Ok(value.map(|value| Entry { key: record.key.into(), value, revision: at.0 }))
    }

    /// The log as it is when `look` looks at the index: rows that the index names are in it.
    fn snapshot<T>(&self, look: impl FnOnce(&Index) -> T) -> Result<(T, Option<Log>), Error> {
        let database = self.database()?;
        let index = self.index();
        Ok((look(&index), open_log(&database)?))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let (at, log) = self.snapshot(|index| index.at.get(key).map(|place| place.at))?;
        match (at, log) {
            (Some(at), Some(log)) => self.entry(&log, at),
            _ => Ok(None),
        }
    }

    fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        let look = |index: &Index| {
            let within =
                index.at.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
            (within.map(|(_, place)| place.at).collect::<Vec<Position>>(), index.revision)
        };
        let ((positions, revision), log) = self.snapshot(look)?;
        let Some(log) = log else { return Ok((Vec::new(), revision)) };
        let entries = positions.into_iter().filter_map(|at| self.entry(&log, at).transpose());
        Ok((entries.collect::<Result<_, _>>()?, revision))
    }

    /// What happened after a revision, up to the newest in the log.
    fn events(&self, database: &Database, after: Revision) -> Result<Vec<Event>, Error> {
        let Some(log) = open_log(database)? else { return Ok(Vec::new()) };
        let mut events = Vec::new();
        for row in log.range((after + 1, 0)..).map_err(damaged)? {
            let (position, bytes) = row.map_err(damaged)?;
            let record = Record::decode(bytes.value())?;
            let previous = record.previous.map(|at| self.entry(&log, at)).transpose()?.flatten();
            let (key, revision) = (record.key.to_string(), position.value().0);
            events.push(match (self.value(&record)?, previous) {
                (Some(value), previous) => Event::Put { entry: Entry { key, value, revision }, previous: previous.map(|p| p.value) },
                (None, Some(previous)) => Event::Delete { key, revision, previous },
                (None, None) => continue,
            });
        }
        Ok(events)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn txn(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        self.ask(|reply| Command::Txn { writes, reply }).await?
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let key = key.to_string();
        self.read(move |shared| shared.get(&key)).await
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        let prefix = prefix.to_string();
        self.read(move |shared| shared.range(&prefix)).await
    }

    async fn watch(&self, after: Revision) -> Result<mpsc::Receiver<Batch>, Error> {
        self.ask(|reply| Command::Watch { after, reply }).await?
    }

    /// Takes effect on disk with the next write.
    async fn compact(&self, to: Revision) -> Result<(), Error> {
        self.ask(|reply| Command::Compact { to, reply }).await
    }

    async fn history(&self) -> Range<Revision> {
        let index = self.shared.index();
        index.compacted..index.revision + 1
    }
}
