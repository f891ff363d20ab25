//! Every bound of this crate.

use std::time::Duration;

use base::Backoff;

/// How often the node's Lease is renewed, and for how long it holds.
pub const LEASE_RENEW: Duration = Duration::from_secs(3);
pub const LEASE_SECONDS: i32 = 15;
/// How often the node's status is told although nothing changed; changes of conditions are told with the next check.
pub const NODE_STATUS_REPORT: Duration = Duration::from_secs(300);
pub const NODE_STATUS_CHECK: Duration = Duration::from_secs(10);
/// Image names in the node's status.
pub const NODE_IMAGES_MAX: usize = 50;

/// Plans in a row of one pod without anything coming from outside; each follows from what the one before did.
pub const STEPS_MAX: usize = 8;
/// Messages that wait for one pod's worker.
pub const WORKER_QUEUE: usize = 256;
/// Writes of a status, a deletion, a registration that failed.
pub const WRITE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// A SIGKILL that showed no effect is sent again.
pub const KILL_AGAIN: Duration = Duration::from_secs(2);
/// The driver is asked for what exists though no event was missed.
pub const RESYNC: Duration = Duration::from_secs(60);
/// Pods being prepared or containers being started at once, over the whole node: what a disk and two cores bear.
pub const STARTS_MAX: usize = 16;

/// Bytes of a termination message, and of a log's tail used as one (upstream: 4096; 2048 and 80 lines).
pub const TERMINATION_MESSAGE_BYTES: usize = 4096;
pub const TERMINATION_LOG_BYTES: usize = 2048;
pub const TERMINATION_LOG_LINES: i64 = 80;

/// How much of a HTTP probe's answer is read (upstream: 10 KiB), and shown.
pub const PROBE_BODY_BYTES: usize = 10 << 10;
pub const PROBE_MESSAGE_BYTES: usize = 10 << 10;
pub const PROBE_REDIRECTS: usize = 10;
/// Exec probes and hooks: output that is kept for the message.
pub const EXEC_OUTPUT_BYTES: usize = 10 << 10;

/// A volume's content, all keys together; the API's own bound is 1 MiB a ConfigMap or Secret.
pub const PROJECTED_BYTES_MAX: usize = 16 << 20;
/// Service-account tokens are renewed after this part of their life, and no later than after a day.
pub const TOKEN_REFRESH_PERCENT: i64 = 80;
pub const TOKEN_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a running pod's volumes are compared with their sources though no change was seen.
pub const VOLUME_RESYNC: Duration = Duration::from_secs(60);
/// One look-up of an object that a pod refers to.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// One read of a log file; lines are cut by the runtime at 16 KiB.
pub const LOG_CHUNK: usize = 64 << 10;
pub const LOG_LINE_MAX: usize = 1 << 20;
/// How often a followed log is looked at.
pub const LOG_POLL: Duration = Duration::from_millis(50);
/// A log larger than this is cut: the older half goes.
pub const LOG_FILE_BYTES_MAX: u64 = 10 << 20;
/// Bytes read from a forwarded port at once.
pub const FORWARD_CHUNK: usize = 32 << 10;

/// Name servers and search domains in a resolv.conf (the resolver's own limits).
pub const DNS_NAMESERVERS_MAX: usize = 3;
pub const DNS_SEARCHES_MAX: usize = 32;
pub const DNS_SEARCH_BYTES_MAX: usize = 2048;
/// /etc/passwd and /etc/group of an image.
pub const PASSWD_BYTES_MAX: u64 = 4 << 20;
/// Links followed while a path of an image is resolved.
pub const LINKS_MAX: usize = 40;

/// How often unused images, old logs and local storage are looked at.
pub const COLLECT_IMAGES: Duration = Duration::from_secs(300);
pub const CHECK_STORAGE: Duration = Duration::from_secs(10);
/// Files counted in one volume before the count is given up as "too many to measure quickly".
pub const STORAGE_FILES_MAX: usize = 200_000;
/// Free memory, disk and inodes under which the node says it is under pressure (upstream's hard eviction thresholds).
pub const MEMORY_AVAILABLE_MIN: u64 = 100 << 20;
pub const DISK_AVAILABLE_PERCENT: u64 = 10;
pub const INODES_FREE_PERCENT: u64 = 5;
pub const PIDS_FREE_PERCENT: u64 = 5;

/// Logs of pods that are gone: how long they are kept, and of how many.
pub const DEAD_LOGS_AGE: Duration = Duration::from_secs(3600);
pub const DEAD_LOGS_MAX: usize = 200;
/// How long a sample of CPU time is the base of a rate at least.
pub const RATE_WINDOW_MIN: Duration = Duration::from_secs(1);
/// Before a driver whose events ended is asked again.
pub const DRIVER_AGAIN: Duration = Duration::from_secs(1);
/// Wait before a node's registration is tried again.
pub const REGISTER_AGAIN: Duration = Duration::from_millis(500);
/// How long a deleted pod's stop signal waits for routers to have taken the pod out.
pub const LEAVING_WAIT: Duration = Duration::from_secs(2);
