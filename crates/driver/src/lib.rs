//! The driver contract: how the agent runs instances without knowing their packaging (DESIGN.md §4).
//!
//! A driver owns *pods* (what shares a network namespace) and the *containers* in them. What runs outlives the agent:
//! after a restart `recover` finds everything again, with exit codes that happened meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub mod conformance;
pub mod fake;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub exec: bool,
    pub attach: bool,
    pub port_forward: bool,
    /// Containers of one pod can share the process namespace.
    pub share_process_namespace: bool,
    /// `hostNetwork` is possible.
    pub host_network: bool,
}

/// What a pod's containers share. Everything the shim needs is here or in `Container`: it calls nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// The Pod's uid: the identity everywhere below the API.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    /// The network namespace, already set up; `None` is the host's.
    pub netns: Option<PathBuf>,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    /// Limits over all containers of the pod, where the spec gives them for each.
    pub resources: Resources,
    pub sysctls: BTreeMap<String, String>,
    /// Where log files go: `<log_dir>/<container>/<attempt>.log`, CRI's format (`time stream F|P text`).
    pub log_dir: PathBuf,
}

/// Enforced limits; 0 or `None` is "no limit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Thousandths of a core, the CFS quota.
    pub cpu_limit_millis: u64,
    /// Thousandths of a core, the share under contention.
    pub cpu_request_millis: u64,
    pub memory_limit_bytes: u64,
    pub memory_request_bytes: u64,
    pub pids_limit: u64,
    /// -1000..=1000, by QoS class.
    pub oom_score_adj: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub source: PathBuf,
    /// Absolute path inside the container. Resolved inside the root, never through links out of it.
    pub target: PathBuf,
    pub read_only: bool,
    /// `rprivate` (default), `rslave`, `rshared`
    pub propagation: Option<String>,
}

/// Every capability of the kernel, by its number (`linux/capability.h`): what `ALL` means.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    pub privileged: bool,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    /// The final set, as `CAP_CHOWN`; computed by the agent from the default set, add and drop.
    pub capabilities: Vec<String>,
    /// `RuntimeDefault` filter on or off; `seccomp_profile` holds an OCI seccomp JSON for `Localhost`.
    pub seccomp_default: bool,
    pub seccomp_profile: Option<String>,
    /// `procMount: Unmasked` leaves /proc and /sys unmasked.
    pub unmasked_proc: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// Unpacked image layers, lowest first; the driver lays a writable layer of its own on top.
    Layers(Vec<PathBuf>),
    /// The directory of a package's artifact; the driver decides what else of the machine is seen.
    Package(PathBuf),
    /// A disk image.
    Disk(PathBuf),
}

impl Default for Root {
    fn default() -> Self {
        Root::Layers(Vec::new())
    }
}

/// One container, fully decided: nothing is left to look up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    pub name: String,
    /// Counts restarts; `name` and `attempt` together are unique in the pod.
    pub attempt: u32,
    pub root: Root,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub mounts: Vec<Mount>,
    pub security: Security,
    pub resources: Resources,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Bytes that the writable layer and logs may take; measured by the agent.
    pub ephemeral_storage_limit_bytes: u64,
    /// Where the container's termination message is bind-mounted from (already among `mounts`).
    pub termination_message: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Created,
    Running { pid: i32, started_at_ms: i64 },
    Exited(Exit),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// 0..=255; 128 + signal where a signal ended it, as kubectl shows it.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub started_at_ms: i64,
    pub finished_at_ms: i64,
    /// Why it never started (`exec: "nginxx": executable file not found in $PATH`), else empty.
    pub error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    pub name: String,
    pub attempt: u32,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub pod: Pod,
    /// Every attempt that is still known, oldest first.
    pub containers: Vec<ContainerState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container changed its state.
    Container { uid: String, container: ContainerState },
    /// The shim of a pod is gone: all its containers are dead.
    PodLost { uid: String },
}

/// Usage since the container's start; what the cgroup counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub cpu_usec: u64,
    /// Working set: usage less inactive file pages.
    pub memory_bytes: u64,
    pub memory_rss_bytes: u64,
    pub pids: u64,
    pub io_read_bytes: u64,
    pub io_write_bytes: u64,
    pub writable_layer_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub pod: Usage,
    pub containers: BTreeMap<String, Usage>,
    pub network_rx_bytes: u64,
    pub network_tx_bytes: u64,
}

/// A command to run beside a container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// One message of a stream session, both ways. Channels are those of `v5.channel.k8s.io`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Stdin(Bytes),
    /// No more input: the process sees end of file.
    CloseStdin,
    Stdout(Bytes),
    Stderr(Bytes),
    Resize {
        width: u16,
        height: u16,
    },
    /// The last frame from the driver: the command's exit code, or why it could not run.
    Exit(Result<i32, String>),
}

/// A running exec or attach. Dropping both ends hangs up; an exec'd process is then killed.
pub struct Session {
    pub input: mpsc::Sender<Frame>,
    pub output: mpsc::Receiver<Frame>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} not found")]
    NotFound(String),
    /// The image or the manifest asks for what cannot be; shown in the container's `waiting.message`.
    #[error("{0}")]
    Invalid(String),
    #[error("not supported by this packaging: {0}")]
    Unsupported(&'static str),
    #[error("{0}")]
    Failed(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The `handler` of the RuntimeClass: `container`, `package` …
    fn name(&self) -> &'static str;
    fn capabilities(&self) -> Capabilities;

    /// Makes the pod's shared part (shim, namespaces, cgroup). Called again for the same uid it changes nothing.
    async fn create_pod(&self, pod: &Pod) -> Result<()>;
    /// Makes a container; it does not run yet.
    async fn create(&self, uid: &str, container: &Container) -> Result<()>;
    /// Runs it. An error here is final for this attempt; the exit is reported as an event too.
    async fn start(&self, uid: &str, container: &str, attempt: u32) -> Result<()>;
    /// Sends a signal to the container's first process. To one that has exited: `Ok`.
    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<()>;
    /// Removes an exited attempt's root and cgroup; its log file stays until `remove_pod`.
    async fn remove(&self, uid: &str, container: &str, attempt: u32) -> Result<()>;
    /// Kills what still runs and takes away everything but the log directory. Unknown uid: `Ok`.
    async fn remove_pod(&self, uid: &str) -> Result<()>;

    /// All pods that exist on this machine, after a start of the agent.
    async fn recover(&self) -> Result<Vec<PodState>>;
    /// Events from now on; each consumer gets all.
    fn events(&self) -> mpsc::Receiver<Event>;
    async fn stats(&self, uid: &str) -> Result<Stats>;

    async fn exec(&self, _uid: &str, _container: &str, _exec: &Exec) -> Result<Session> {
        Err(Error::Unsupported("exec"))
    }
    async fn attach(&self, _uid: &str, _container: &str) -> Result<Session> {
        Err(Error::Unsupported("attach"))
    }
    /// A TCP connection to a port as seen from inside the pod (its loopback included).
    async fn dial(&self, _uid: &str, _port: u16) -> Result<tokio::net::TcpStream> {
        Err(Error::Unsupported("port-forward"))
    }
}
