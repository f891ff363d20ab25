//! What organs agree on without importing each other: identities and permission, the pod network, the node tunnel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::Status;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Who asks: `authentication.k8s.io/v1 UserInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    pub fn new(username: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| g.to_string()).collect();
        groups.push("system:authenticated".into());
        Self { username: username.into(), groups, ..Self::default() }
    }

    /// `system:node:NAME`, group `system:nodes`.
    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), &["system:nodes"])
    }

    /// `system:serviceaccount:NS:NAME` with its groups.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let ns_group = format!("system:serviceaccounts:{namespace}");
        Self::new(format!("system:serviceaccount:{namespace}:{name}"), &["system:serviceaccounts", &ns_group])
    }
}

/// What is asked for: `authorization.k8s.io/v1` ResourceAttributes or NonResourceAttributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Set for non-resource requests (`/healthz`), else empty.
    pub path: String,
}

/// Turns what a connection carries into an identity. `Ok(None)`: this one has no opinion.
#[async_trait]
pub trait Authenticator: Send + Sync {
    async fn authenticate(&self, bearer: Option<&str>, client_cert_der: Option<&[u8]>) -> Result<Option<Identity>, Status>;
}

/// `Ok(())` or the reason why not, in the words that follow `… is forbidden:`.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, who: &Identity, what: &Attributes) -> Result<(), String>;
}

// ---- pod network ---------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// A bind mount or /proc path that `setns` opens; it lives as long as the attachment.
    pub netns: PathBuf,
    pub addresses: Vec<IpAddr>,
}

/// Gives pods their place in the network. All calls may be repeated.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes (or finds) the namespace, link and address of a pod.
    async fn attach(&self, uid: &str) -> Result<Attachment, NetworkError>;
    async fn detach(&self, uid: &str) -> Result<(), NetworkError>;
    /// What exists, after a restart.
    async fn list(&self) -> Result<BTreeMap<String, Attachment>, NetworkError>;
    /// The address by which pods reach the node and the node's own.
    fn node_address(&self) -> IpAddr;
    /// What goes into a pod's resolv.conf as nameserver.
    fn dns_address(&self) -> IpAddr;
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no pod address is free in {0}")]
    Exhausted(String),
    #[error("{0}")]
    Failed(String),
}

// ---- node tunnel ---------------------------------------------------------------------------------------------------

/// What the API server asks of an agent, over the connection that the agent opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum NodeRequest {
    Logs {
        namespace: String,
        pod: String,
        uid: String,
        container: String,
        options: LogOptions,
    },
    Exec {
        namespace: String,
        pod: String,
        uid: String,
        container: String,
        command: Vec<String>,
        tty: bool,
        stdin: bool,
    },
    Attach {
        namespace: String,
        pod: String,
        uid: String,
        container: String,
        tty: bool,
        stdin: bool,
    },
    PortForward {
        namespace: String,
        pod: String,
        uid: String,
        port: u16,
    },
    /// Answered by one `Out` frame of JSON: `stats/summary`.
    Stats,
}

/// `PodLogOptions`; times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub since_seconds: Option<i64>,
    pub since_time: Option<String>,
    pub timestamps: bool,
    pub tail_lines: Option<i64>,
    pub limit_bytes: Option<i64>,
}

/// One message of a tunnel session. Numbers are the channels of `v5.channel.k8s.io`; port-forward uses 0 and 1 for its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub channel: u8,
    pub data: Bytes,
}

impl Frame {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    /// A `Status` as JSON, success included: the last frame of exec and attach.
    pub const ERROR: u8 = 3;
    /// `{"Width":80,"Height":24}`
    pub const RESIZE: u8 = 4;
    /// The data is the number of the channel that closes.
    pub const CLOSE: u8 = 255;

    pub fn new(channel: u8, data: impl Into<Bytes>) -> Self {
        Self { channel, data: data.into() }
    }
}

/// Both ends of a session. Closing `input` means the caller hung up.
pub struct Session {
    pub input: mpsc::Sender<Frame>,
    pub output: mpsc::Receiver<Frame>,
}

/// How many frames may wait in either direction of a session.
pub const SESSION_FRAMES_MAX: usize = 64;

/// The agent's side: what the tunnel ends at.
#[async_trait]
pub trait NodeHandler: Send + Sync + 'static {
    async fn open(&self, request: NodeRequest) -> Result<Session, Status>;
}

/// The server's side: which agents are connected. One machine: the agent registers itself in process.
pub trait Tunnels: Send + Sync + 'static {
    fn register(&self, node: &str, handler: Arc<dyn NodeHandler>);
    /// The agent of a node, or `None` while it is away.
    fn node(&self, node: &str) -> Option<Arc<dyn NodeHandler>>;
}
