//! Every bound of the API server in one place. What exceeds one is answered with a `Status`, never with silence.

use std::time::Duration;

/// Request bodies; upstream's `maxRequestBodyBytes`. Beyond: 413.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// A whole body must arrive within this.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// All headers of one request must arrive within this; idle HTTP/1.1 connections end after it, too.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(60);
pub const HEADERS_MAX: usize = 128;
pub const HEADER_BYTES_MAX: u32 = 64 * 1024;
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes no byte of a waiting answer for this long is cut off.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Open TCP connections; more are refused at accept.
pub const CONNECTIONS_MAX: usize = 16_384;
pub const HTTP2_STREAMS_MAX: u32 = 1_000;
pub const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// On shutdown, how long requests in flight may take; watches end at once.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Requests that are neither watches nor streams, at one time. Beyond: 429 with `Retry-After`.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1_024;
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// Watches at one time. Beyond: 429.
pub const WATCHES_MAX: usize = 20_000;
/// A watch without `timeoutSeconds` ends after 30 to 60 minutes, so that clients spread over servers.
pub const WATCH_TIMEOUT_MIN_S: u64 = 1_800;
pub const WATCH_TIMEOUT_SPREAD_S: u64 = 1_800;
/// Between bookmarks of a watch that allows them.
pub const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch flushes what is ready in frames of about this size.
pub const WATCH_FRAME_BYTES: usize = 64 * 1024;

/// How long a read waits for a revision that the cache has not seen yet.
pub const CACHE_WAIT: Duration = Duration::from_secs(3);
/// Answers smaller than this are not compressed (upstream's figure).
pub const GZIP_BYTES_MIN: usize = 128 * 1024;
/// Items of one page when a client asks for more in one `limit`.
pub const LIST_LIMIT_MAX: usize = 1_000_000;

/// How often an unconditional write is tried again after an internal conflict.
pub const WRITE_ATTEMPTS: usize = 16;
/// Before trying again where the cache cannot tell what the write lost to.
pub const CONFLICT_PAUSE: Duration = Duration::from_millis(2);
pub const NAME_ATTEMPTS: usize = 8;
/// Operations of one JSON patch (upstream's figure). Beyond: 413.
pub const PATCH_OPERATIONS_MAX: usize = 10_000;

/// Service-account tokens.
pub const TOKEN_SECONDS_MIN: i64 = 600;
pub const TOKEN_SECONDS_DEFAULT: i64 = 3_600;
pub const TOKEN_SECONDS_MAX: i64 = 365 * 24 * 3_600;
/// A bearer token that is longer is not looked at.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// One WebSocket message from a client, and one SPDY frame.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Streams of one port-forward connection, both of each pair counted.
pub const PORT_FORWARD_STREAMS_MAX: usize = 512;
/// The other half of a port-forward pair must come within this.
pub const PORT_FORWARD_PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// A header block of SPDY after inflation.
pub const SPDY_HEADER_BYTES_MAX: usize = 64 * 1024;
/// After the last frame, how long a client may take to close its side.
pub const STREAM_CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Answers of a proxied pod or service start within this.
pub const PROXY_TIMEOUT: Duration = Duration::from_secs(60);

/// Certificates, in days.
pub const CA_DAYS: i64 = 3_650;
pub const CERT_DAYS: i64 = 365;
/// Certificates with less than this left are made anew at start.
pub const CERT_RENEW_DAYS: i64 = 60;
