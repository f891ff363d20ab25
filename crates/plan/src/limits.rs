//! Every bound of the planners, named.

use std::time::Duration;

use jiff::SignedDuration;

/// How many pods one pass of a ReplicaSet creates or deletes at most (upstream: `BurstReplicas`).
pub const BURST_REPLICAS_MAX: usize = 500;

/// Endpoints in one EndpointSlice (upstream: `max-endpoints-per-slice`).
pub const ENDPOINTS_PER_SLICE_MAX: usize = 100;

/// Addresses in one Endpoints object before it is truncated (upstream: `maxCapacity`).
pub const ENDPOINTS_MAX: usize = 1000;

/// Bytes of the `revision-history` annotation before old revisions fall out of it.
pub const REVISION_HISTORY_BYTES_MAX: usize = 2000;

/// Bytes of a name that a suffix is added to (63 less the suffix of 5).
pub const GENERATED_NAME_BASE_MAX: usize = 58;

/// Deletions in one pass of event expiry and pod garbage collection.
pub const SWEEP_MAX: usize = 500;

/// The first wait before a container is started again after an exit, doubled each time (upstream: 10 s to 5 min) …
pub const RESTART_BACKOFF: base::Backoff = base::Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
/// … and forgotten when the container ran this long.
pub const RESTART_BACKOFF_RESET: Duration = Duration::from_secs(600);
/// The wait after an image could not be pulled.
pub const PULL_BACKOFF: base::Backoff = base::Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
/// The wait after a pod's volumes, network or shim could not be made, or a container's configuration was incomplete.
pub const PREPARE_BACKOFF: base::Backoff = base::Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
/// What a container gets at least between SIGTERM and SIGKILL: a sidecar stopped late, a hook that used up the grace.
pub const GRACE_MIN: Duration = Duration::from_secs(2);

/// Probes before the first success: the first wait between two, doubled up to the second.
pub const EARLY_PROBE_FIRST: SignedDuration = SignedDuration::from_millis(100);
pub const EARLY_PROBE_MAX: SignedDuration = SignedDuration::from_secs(1);
/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
pub const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);

/// Owners remembered as absent; beyond that they are looked up again.
pub const ABSENT_OWNERS_MAX: usize = 10_000;
