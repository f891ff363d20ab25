//! Every bound of this crate.

use std::time::Duration;

use base::Backoff;

/// A whole (not streamed) response: 20,000 pods of 8 KiB fit.
pub const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// An error body that is kept for its message.
pub const ERROR_BODY_BYTES_MAX: usize = 1 << 20;
/// One line of a watch: an object may have 3 MiB, and its escapes some more.
pub const WATCH_LINE_BYTES_MAX: usize = 8 << 20;

/// From sending a request to its complete, not streamed, answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// From sending a streaming request (watch, log) to the head of its answer.
pub const STREAM_HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// TCP connect and TLS handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection that does not answer a ping within `PING_TIMEOUT` is dead: a cut network is seen in 15 s.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow control; the connection's is larger, so that one slow watch does not stop the others.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Page size of an informer's list.
pub const LIST_PAGE: u32 = 2000;
/// What an informer asks a server to end its watch after; it then resumes.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(300);
/// How much longer than `WATCH_TIMEOUT` a silent watch is believed.
pub const WATCH_SLACK: Duration = Duration::from_secs(30);
pub const INFORMER_BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// How long `Informer::reached` waits for a write to come back.
pub const REACHED_TIMEOUT: Duration = Duration::from_secs(5);

pub const RECONCILE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(120));
pub const RECONCILE_CONCURRENCY: usize = 4;
/// The slow full resync that gives truth where watches only give latency.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(600);
/// How long a stopping controller waits for its running reconciles.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Events that wait to be written; more are dropped, with a warning in the log.
pub const RECORDER_QUEUE: usize = 1024;
/// Events remembered for counting repetitions.
pub const RECORDER_MEMORY: usize = 4096;
/// An object that repeats itself: this many events at once, then one each `RECORDER_REFILL` (upstream's spam filter).
pub const RECORDER_BURST: u32 = 25;
pub const RECORDER_REFILL: Duration = Duration::from_secs(300);
/// A kubeconfig larger than this is not one.
pub const KUBECONFIG_BYTES_MAX: u64 = 4 << 20;
