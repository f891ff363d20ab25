//! Every bound of this crate.

use std::time::Duration;

/// Events that a store keeps for watches to start in, over all keys.
pub const HISTORY_EVENTS_MAX: usize = 10_000;
/// And how many bytes of values that are no key's present one.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Batches that may wait for one reader of the store (beyond what it asked for of the past); then it is cut off.
pub const WATCH_BATCHES: usize = 4096;

/// Transactions that one commit takes together.
pub const GROUP_TXNS_MAX: usize = 512;
/// Transactions that may wait for the committer; then writers wait to be let in.
pub const COMMIT_QUEUE: usize = 1024;
/// Bytes of values that one commit takes together.
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Events compacted with one commit, so that history stays bounded without long pauses.
pub const COMPACT_PER_COMMIT: usize = 2 * GROUP_TXNS_MAX;
/// The engine's page cache. Reads of the API never come here, so it is small.
pub const ENGINE_CACHE_BYTES: usize = 8 << 20;
/// After a failed write: how long until the next is tried.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The file is rewritten at start when it is both larger than this and than `SHRINK_FACTOR` times what is in it.
pub const SHRINK_BYTES_MIN: u64 = 64 << 20;
pub const SHRINK_FACTOR: u64 = 4;

/// Per kind: events for watches to resume from. Older ones answer 410.
pub const RING_EVENTS_MAX: usize = 16_384;
pub const RING_BYTES_MAX: usize = 32 << 20;
/// Of a quiet kind only the last few are kept beyond `RING_FRESH`.
pub const RING_EVENTS_MIN: usize = 256;
pub const RING_FRESH: Duration = Duration::from_secs(300);
/// Events that a watcher is given at once.
pub const WATCH_EVENTS_AT_ONCE: usize = 128;

/// Snapshots held for lists that are read in pages.
pub const HELD_SNAPSHOTS_MAX: usize = 64;
pub const HELD_SNAPSHOT_TTL: Duration = Duration::from_secs(300);
