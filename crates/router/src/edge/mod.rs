//! The edge process: the L7 router of a node, fed with snapshots over a local socket, next to the node's DNS server.
//!
//! ```text
//! agent:  Feeder   informers -> plan::routes, plan::dns -> pushes what changed, learns what is applied
//! holder: holder_main   binds the listening sockets, starts the edge with them, starts it again when it dies
//! edge:   Edge     takes the sockets, starts from the last snapshot on tmpfs, applies what is pushed
//! ```
//! The DNS server belongs to another crate: the binary gives it [`Edge::zone`] and the sockets of [`Edge::take_dns`].

mod feed;
mod feeder;
mod holder;
mod ports;
mod sockets;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::CancellationToken;
use plan::dns::Zone;
use plan::routes::{Backends, Routes};
use serde_json::value::RawValue;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};

use crate::proxy::Router;
use crate::server;
use feed::{Message, VERSION, read, write};
pub use feed::{PROTOCOL_SECTIONS, Stats};
pub use feeder::{Feeder, Options as FeederOptions, Sources};
pub use holder::{HolderOptions, ensure_holder, holder_main, stop_holder, sweep};
pub use sockets::Sockets;

const ROUTES: &str = "routes";
const BACKENDS: &str = "backends";
const DNS: &str = "dns";

/// Where things are under `<run>`.
pub fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("edge")
}

pub fn socket_path(run_dir: &Path) -> PathBuf {
    directory(run_dir).join("edge.sock")
}

/// One edge process. See the module.
pub struct Edge {
    router: Arc<Router>,
    directory: PathBuf,
    zone: watch::Sender<Arc<Zone>>,
    sockets: std::sync::Mutex<Sockets>,
    /// One push at a time, and the revisions of what is applied.
    applied: Mutex<BTreeMap<String, u64>>,
}

impl Edge {
    /// Takes the inherited sockets and the last snapshot, if there is one. `https_port` is the port clients use.
    pub fn start(run_dir: &Path, sockets: Sockets, https_port: u16) -> io::Result<Arc<Self>> {
        let directory = directory(run_dir);
        private_directory(&directory)?;
        let edge = Self {
            router: Router::new(https_port).map_err(io::Error::other)?,
            zone: watch::Sender::new(Arc::default()),
            sockets: std::sync::Mutex::new(sockets),
            applied: Mutex::default(),
            directory,
        };
        let mut applied = BTreeMap::new();
        for section in PROTOCOL_SECTIONS {
            let Ok(bytes) = fs::read(edge.file(section)) else { continue };
            let value = serde_json::from_slice::<Box<RawValue>>(&bytes).map_err(|e| e.to_string());
            match value.and_then(|value| edge.apply(section, &value)) {
                Ok((revision, _)) => drop(applied.insert(section.to_string(), revision)),
                // A file of another version or a torn one: the agent will feed us.
                Err(error) => tracing::warn!(section, error, "the last snapshot cannot be used"),
            }
        }
        *edge.applied.try_lock().map_err(io::Error::other)? = applied;
        Ok(Arc::new(edge))
    }

    /// The zone for the DNS server; empty until one is known.
    pub fn zone(&self) -> watch::Receiver<Arc<Zone>> {
        self.zone.subscribe()
    }

    /// The DNS server's sockets, once.
    pub fn take_dns(&self) -> Option<(UdpSocket, TcpListener)> {
        let mut sockets = self.sockets.lock().unwrap_or_else(|e| e.into_inner());
        sockets.dns_udp.take().zip(sockets.dns_tcp.take())
    }

    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Serves HTTP, HTTPS and the feed until told to stop; requests in flight may then end.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) -> io::Result<()> {
        let (http, https) = {
            let mut sockets = self.sockets.lock().unwrap_or_else(|e| e.into_inner());
            let missing = || io::Error::new(io::ErrorKind::InvalidInput, "the edge was started without its sockets");
            (sockets.http.take().ok_or_else(missing)?, sockets.https.take().ok_or_else(missing)?)
        };
        let feed = self.listen()?;
        let feeding = self.clone().accept_feeds(feed);
        let serving = server::serve(self.router.clone(), http, https, stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            biased;
            // Feeds end at once: the next edge, if there is one, has taken the socket's name already.
            served = async { tokio::select! { biased; () = stop.cancelled() => {}, never = feeding => match never {} } } => served,
            ended = &mut serving => return ended,
        }
        serving.await
    }

    /// Takes the feed's name over from an edge that is on its way out.
    fn listen(&self) -> io::Result<UnixListener> {
        let name = self.directory.join("edge.sock");
        let own = self.directory.join(format!("edge.{}.sock", std::process::id()));
        let _ = fs::remove_file(&own);
        let listener = UnixListener::bind(&own)?;
        fs::rename(&own, &name)?;
        Ok(listener)
    }

    async fn accept_feeds(self: Arc<Self>, listener: UnixListener) -> std::convert::Infallible {
        let mut feeds = tokio::task::JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let edge = self.clone();
                    feeds.spawn(async move {
                        if let Err(error) = edge.feed(stream).await {
                            tracing::debug!(%error, "a feed has ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a feed");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
            while feeds.try_join_next().is_some() {}
        }
    }

    async fn feed(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let answer = match read(&mut stream).await? {
                Message::Hello { .. } => {
                    Message::Hello { version: VERSION, pid: std::process::id(), revisions: self.applied.lock().await.clone() }
                }
                Message::Push { id, sections } => self.push(id, sections).await,
                Message::Stats => Message::Counted { counts: self.router.counts() },
                other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected message {other:?}"))),
            };
            write(&mut stream, &answer).await?;
        }
    }

    async fn push(&self, id: u64, sections: BTreeMap<String, Box<RawValue>>) -> Message {
        let mut applied = self.applied.lock().await;
        let mut problems = Vec::new();
        for (section, value) in sections {
            match self.apply(&section, &value) {
                Ok((revision, found)) => {
                    applied.insert(section.clone(), revision);
                    problems.extend(found);
                    if let Err(error) = self.keep(&section, &value) {
                        problems.push(format!("the snapshot of {section} could not be kept: {error}"));
                    }
                }
                Err(error) => problems.push(format!("{section}: {error}")),
            }
        }
        Message::Ack { id, revisions: applied.clone(), problems }
    }

    /// Makes one section the one that counts; returns its revision and what is wrong with parts of it.
    fn apply(&self, section: &str, value: &RawValue) -> Result<(u64, Vec<String>), String> {
        let wrong = |e: serde_json::Error| e.to_string();
        match section {
            ROUTES => {
                let routes: Routes = serde_json::from_str(value.get()).map_err(wrong)?;
                Ok((routes.revision, self.router.set_routes(routes)))
            }
            BACKENDS => {
                let backends: Backends = serde_json::from_str(value.get()).map_err(wrong)?;
                let revision = backends.revision;
                self.router.set_backends(backends);
                Ok((revision, Vec::new()))
            }
            DNS => {
                let zone: Zone = serde_json::from_str(value.get()).map_err(wrong)?;
                let revision = zone.revision;
                self.zone.send_replace(Arc::new(zone));
                Ok((revision, Vec::new()))
            }
            // From a newer agent: what it says with it, it says to newer edges.
            _ => Ok((0, Vec::new())),
        }
    }

    fn file(&self, section: &str) -> PathBuf {
        self.directory.join(format!("{section}.json"))
    }

    /// Whole or not at all; the directory is on tmpfs and closed to others, for certificates' keys are in it.
    fn keep(&self, section: &str, value: &RawValue) -> io::Result<()> {
        if !PROTOCOL_SECTIONS.contains(&section) {
            return Ok(());
        }
        let new = self.directory.join(format!("{section}.{}.new", std::process::id()));
        fs::write(&new, value.get())?;
        fs::rename(&new, self.file(section))
    }
}

fn private_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}
