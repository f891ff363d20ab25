//! Every bound of this crate.

use std::time::Duration;

/// Manifests larger than this are refused with 413.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// How much of a blob is read at a time.
pub const PIECE_BYTES: usize = 256 << 10;
/// Connections at once.
pub const CONNECTIONS_MAX: usize = 1_000;
/// From accept to the last byte of the request's head.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take to end after a shutdown began.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
