//! Every bound of this crate.

use std::time::Duration;

/// One frame between agent and shim: a container's spec with its environment fits.
pub const FRAME_MAX: usize = 8 << 20;
/// One read from a container's pipe, and the largest data frame.
pub const CHUNK: usize = 32 << 10;
/// What may wait for a stream client before its source is no longer read.
pub const OUT_QUEUE_HIGH: usize = 256 << 10;
/// What may wait for a process's stdin before its client is no longer read.
pub const STDIN_QUEUE_HIGH: usize = 64 << 10;
/// An attached client that takes nothing for this long while output waits is hung up on: it must not stop the container.
pub const ATTACH_STALL: Duration = Duration::from_secs(10);
/// How long output is read on after a process has ended, where others still hold its pipes.
pub const DRAIN: Duration = Duration::from_millis(500);
/// Connections to one shim: the agent's, exec and attach sessions.
pub const CONNECTIONS_MAX: usize = 256;

/// containerd's bound for one line of a CRI log; what is longer is written in parts.
pub const LOG_LINE_MAX: usize = 16 << 10;
/// A log file is rotated at this size …
pub const LOG_FILE_MAX: u64 = 10 << 20;
/// … and this many are kept, the current one among them.
pub const LOG_FILES: u32 = 5;

/// `/dev/shm` of a pod.
pub const SHM_SIZE: &str = "64m";
/// Symbolic links followed while a mount target is looked up.
pub const LINKS_MAX: usize = 40;

/// A shim answers a call within this time, or the call fails; a start waits for mounts.
pub const CALL: Duration = Duration::from_secs(120);
/// A shim is up within this time.
pub const SHIM_START: Duration = Duration::from_secs(30);
/// Processes that were killed are gone within this time.
pub const KILL: Duration = Duration::from_secs(10);
/// What containers have to end when the machine goes down, before they are killed: Kubernetes' default grace period, and less
/// than the 90 s after which systemd kills.
pub const LEAVE: Duration = Duration::from_secs(30);
/// How long a control group is tried to be removed: it is busy until the kernel has buried the last process.
pub const CGROUP_REMOVE: Duration = Duration::from_secs(2);
/// Opening a connection into a pod.
pub const DIAL: Duration = Duration::from_secs(10);

/// Events that wait for one consumer; one that does not keep up sees its channel end, subscribes anew and recovers.
pub const EVENTS_MAX: usize = 16 << 10;
/// Frames that wait in a session, each way.
pub const SESSION_FRAMES: usize = 32;
