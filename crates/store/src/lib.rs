//! The store: one total order of revisions over keys, on disk or in memory, and the cache the API reads from.
//!
//! Knows keys and bytes. Does not know kinds, JSON beyond one spliced field, users or HTTP. It refuses what Kubernetes
//! never uses (after kine): no leases, no nested transactions, no range deletes.

pub mod cache;
mod directory;
mod embedded;
pub mod limits;
mod memory;
mod seal;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use cache::Cache;
pub use directory::{DataDir, FORMAT};
pub use embedded::{Embedded, Opener, Options};
pub use memory::Memory;
pub use seal::Keyring;

/// The one total order. 0 is "before everything"; the first write makes 1 or more.
pub type Revision = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// The key must exist at this revision.
    At(Revision),
    /// No precondition (a delete of an absent key is then a conflict all the same).
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub expect: Expect,
    /// `None` deletes. Values carry no revision of their own.
    pub value: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    pub revision: Revision,
}

/// What happened at one revision. A delete carries the last value, so that watchers can tell what went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put { entry: Entry, previous: Option<Bytes> },
    Delete { key: String, revision: Revision, previous: Entry },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Self::Put { entry, .. } => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Events of one or several revisions, in order; a revision is never split over two batches.
pub type Batch = Arc<[Event]>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{key}: expected {expected:?}, found revision {found:?}")]
    Conflict { key: String, expected: Expect, found: Option<Revision> },
    /// The store cannot write now (full disk, I/O error); reads go on. The text says why.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    #[error("revision {0} is compacted away")]
    Compacted(Revision),
    /// Another process holds the directory, another version wrote it, or the file is damaged.
    #[error("{0}")]
    Open(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// The contract of DESIGN.md §4. Every method is safe to call from many tasks.
///
/// `txn` is acknowledged only after it is durable; its revision is greater than all before. All writes of one `txn`
/// happen at one revision or none does. Events arrive in revision order, each once.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn txn(&self, writes: Vec<Write>) -> Result<Revision, Error>;
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;
    /// All keys that begin with `prefix`, in byte order, and the revision of the snapshot they were read at.
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error>;
    /// Every event after `after`. The channel closes when the store does or when the reader falls hopelessly behind.
    async fn watch(&self, after: Revision) -> Result<mpsc::Receiver<Batch>, Error>;
    /// Forgets history up to and including `to`. Current values stay.
    async fn compact(&self, to: Revision) -> Result<(), Error>;
    /// Held history: `watch(after)` is possible for every `after` in it; its last is the newest revision.
    async fn history(&self) -> Range<Revision>;
}

/// Whether a write may happen to a key that is at `found`. A delete needs something to delete.
fn check(write: &Write, found: Option<Revision>) -> Result<(), Error> {
    let expected = match write.expect {
        Expect::Absent => found.is_none(),
        Expect::At(revision) => found == Some(revision),
        Expect::Any => true,
    };
    if expected && (write.value.is_some() || found.is_some()) {
        return Ok(());
    }
    Err(Error::Conflict { key: write.key.clone(), expected: write.expect.clone(), found })
}
