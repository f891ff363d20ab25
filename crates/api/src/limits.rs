//! The bounds of what is decoded.

/// The largest request body, in bytes (upstream's `MaxRequestBodyBytes`).
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Messages within messages of a protobuf body; serde_json has a bound of its own for JSON, 128.
pub const PROTOBUF_DEPTH_MAX: usize = 100;
/// Objects within objects of a YAML body. Its parser takes some 20 KiB of stack a level without optimisation.
pub const YAML_DEPTH_MAX: usize = 64;
/// Sequences, maps and scalars of a YAML body, those that aliases repeat included.
pub const YAML_NODES_MAX: usize = 200_000;
/// Aliases of a YAML body that may be followed.
pub const YAML_ALIASES_MAX: usize = 1_000;
/// Values that a protobuf body may hold: an empty message is two bytes on the wire and fifty in memory.
pub const PROTOBUF_VALUES_MAX: usize = 500_000;

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
