//! Every bound of this crate in one place. The figures are upstream's.

/// All annotations of one object together, keys and values.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// All data of one ConfigMap or Secret.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;
/// What the `copy` operations of one JSON patch may copy together.
pub const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Entries of updates in `managedFields`; beyond, the oldest are merged into one.
pub const UPDATE_MANAGERS_MAX: usize = 10;
/// `fieldManager` of a request.
pub const FIELD_MANAGER_BYTES_MAX: usize = 128;
/// The message of an Event.
pub const EVENT_NOTE_BYTES_MAX: usize = 1024;
/// Endpoints of one EndpointSlice, and ports.
pub const SLICE_ENDPOINTS_MAX: usize = 1000;
pub const SLICE_PORTS_MAX: usize = 20_000;
