//! One client for every organ: the same requests in process or over HTTPS, informers, and the reconcile runtime.
//!
//! Knows how to speak the API; does not know any kind but through `k8s_openapi::Resource`. What it is not: it makes no
//! decisions (that is `plan`), it keeps no identity (that is the transport's), and it never retries a write by itself.
//!
//! ```text
//! Client ── Transport ── the server in process, or HttpTransport
//!   └─ Informer<K>: list + watch ──> Arc<Snapshot<K>>, Change<K> to whoever listens
//!        └─ Controller<R>: changes ──> deduplicated keys ──> R::reconcile(key)
//! ```

mod client;
mod error;
mod events;
pub mod fake;
mod http;
mod informer;
mod kubeconfig;
pub mod limits;
mod queue;
pub mod reconcile;
pub mod transport;
mod watch;

pub use client::{Client, DeleteOptions, Kind, ListOptions, ObjectList, Patch, WatchOptions, path};
pub use error::Error;
pub use events::{Recorder, reference};
pub use http::{HttpSettings, HttpTransport, Upgraded};
pub use informer::{Change, Changes, Informer, Key, Object, PartialObject, Snapshot};
pub use kubeconfig::{Kubeconfig, KubeconfigError};
pub use queue::Queue;
pub use reconcile::{Controller, Reconciler};
pub use transport::{Body, Transport};
pub use watch::{Lines, Watch, WatchEvent};

/// Stops loops: cancel it, and informers' users and controllers finish what runs and return.
pub use tokio_util::sync::CancellationToken;
