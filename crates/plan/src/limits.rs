//! Every bound of the planners, named.

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
