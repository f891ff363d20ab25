//! Every bound of the controllers, named.

use std::time::Duration;

/// Writes of one wave that are under way at once.
pub const WAVE_CONCURRENCY: usize = 32;
/// Pods that are being bound at once: each waits for a durable write, and group commit likes company.
pub const BIND_CONCURRENCY: usize = 64;
/// Keys that a controller of many small objects reconciles at once.
pub const RECONCILE_CONCURRENCY: usize = 8;

/// How soon a reconcile is repeated that lost against another writer.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(20);
/// How soon it is repeated when its writes were not seen in its caches yet.
pub const UNSEEN_RETRY: Duration = Duration::from_millis(250);
/// How often a pod that fits nowhere is tried again though nothing changed.
pub const UNSCHEDULABLE_RETRY: Duration = Duration::from_secs(300);
/// How often a namespace that is being deleted is counted.
pub const NAMESPACE_RETRY: Duration = Duration::from_millis(500);
/// How often kinds are discovered anew.
pub const DISCOVERY_INTERVAL: Duration = Duration::from_secs(30);
/// How soon discovery is repeated that failed.
pub const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// How soon an owner is looked for again that exists but is not in the caches yet.
pub const OWNER_RETRY: Duration = Duration::from_millis(500);
/// How often ended and lost pods are swept.
pub const POD_GC_INTERVAL: Duration = Duration::from_secs(20);
/// The longest time between two sweeps of events.
pub const EVENTS_INTERVAL: Duration = Duration::from_secs(300);
/// Objects in one page of a list.
pub const PAGE: u32 = 500;
