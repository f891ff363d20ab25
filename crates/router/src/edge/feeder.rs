//! The agent's side of the feed: what the API says becomes snapshots, and the edge's acknowledgements become one number.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base::Backoff;
use client::{CancellationToken, Client, Informer};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use plan::Reason;
use plan::dns::Zone;
use plan::routes::{self, Backends, Routes};
use serde_json::value::{RawValue, to_raw_value};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::feed::{Message, Stats, VERSION, read, write};
use super::{BACKENDS, DNS, ROUTES};
use crate::limits::{FEED_ANSWER, FEED_CHECK, FEED_RETRY_MAX, FEED_RETRY_MIN, FEED_SETTLE};

/// What the edge's snapshots are made from. `secrets` are those of type `kubernetes.io/tls`.
#[derive(Clone)]
pub struct Sources {
    pub ingresses: Informer<Ingress>,
    pub classes: Informer<IngressClass>,
    pub services: Informer<Service>,
    pub slices: Informer<EndpointSlice>,
    pub secrets: Informer<Secret>,
}

impl Sources {
    /// Services and slices may be shared with the Service proxy. `secrets` is a client that may list Secrets of type
    /// `kubernetes.io/tls` in all namespaces.
    pub fn start(client: &Client, secrets: &Client, services: Informer<Service>, slices: Informer<EndpointSlice>) -> Self {
        Self {
            ingresses: Informer::start(client),
            classes: Informer::start(client),
            services,
            slices,
            secrets: Informer::start_scoped(secrets, "", "", "type=kubernetes.io/tls"),
        }
    }

    async fn ready(&self) {
        tokio::join!(self.ingresses.ready(), self.classes.ready(), self.services.ready(), self.slices.ready(), self.secrets.ready());
    }

    fn wake(&self, notify: &Arc<Notify>) {
        macro_rules! on_change {
            ($($informer:ident)*) => { $( let n = notify.clone(); self.$informer.on_change(move |_| n.notify_one()); )* };
        }
        on_change!(ingresses classes services slices secrets);
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    /// The edge's socket: [`super::socket_path`].
    pub socket: PathBuf,
    /// `cluster.local`
    pub domain: String,
}

/// Feeds one node's edge. See the module.
pub struct Feeder {
    options: Options,
    sources: Sources,
    applied: watch::Sender<u64>,
    reasons: watch::Sender<Arc<Vec<Reason>>>,
    problems: watch::Sender<Arc<Vec<String>>>,
    stats: watch::Sender<Stats>,
}

/// Everything the edge has to know. Made without revisions, so that only what differs is sent.
#[derive(Default)]
struct Snapshot {
    routes: Option<Routes>,
    backends: Option<Backends>,
    zone: Option<Zone>,
}

impl Snapshot {
    /// The sections that differ from what the edge has, as they are sent.
    fn since(&self, known: &Self, revision: u64) -> io::Result<BTreeMap<String, Box<RawValue>>> {
        let mut sections = BTreeMap::new();
        if let Some(routes) = self.routes.as_ref().filter(|_| self.routes != known.routes) {
            let revised = Routes { revision, ..routes.clone() };
            sections.insert(ROUTES.to_string(), to_raw_value(&revised)?);
        }
        if let Some(backends) = self.backends.as_ref().filter(|_| self.backends != known.backends) {
            let revised = Backends { revision, ..backends.clone() };
            sections.insert(BACKENDS.to_string(), to_raw_value(&revised)?);
        }
        if let Some(zone) = self.zone.as_ref().filter(|_| self.zone != known.zone) {
            let revised = Zone { revision, ..zone.clone() };
            sections.insert(DNS.to_string(), to_raw_value(&revised)?);
        }
        Ok(sections)
    }
}

impl Feeder {
    pub fn new(options: Options, sources: Sources) -> Self {
        Self {
            options,
            sources,
            applied: watch::Sender::new(0),
            reasons: watch::Sender::new(Arc::default()),
            problems: watch::Sender::new(Arc::default()),
            stats: watch::Sender::new(Stats::default()),
        }
    }

    /// The revision of EndpointSlices by which the edge routes and resolves; 0 before the first acknowledgement.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// What is wrong with Ingresses, for Events.
    pub fn reasons(&self) -> watch::Receiver<Arc<Vec<Reason>>> {
        self.reasons.subscribe()
    }

    /// What the edge could not use (certificates), in its words.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.problems.subscribe()
    }

    /// The edge's counters, renewed every few seconds.
    pub fn stats(&self) -> watch::Receiver<Stats> {
        self.stats.subscribe()
    }

    /// Runs until told to stop. An edge that is away is connected to again; what it missed is its next push.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! { biased; () = stop.cancelled() => {}, never = self.feed_forever() => match never {} }
    }

    async fn feed_forever(&self) -> std::convert::Infallible {
        let changed = Arc::new(Notify::new());
        self.sources.wake(&changed);
        // A half-seen world would take routes away that are there.
        self.sources.ready().await;
        let backoff = Backoff::new(FEED_RETRY_MIN, FEED_RETRY_MAX);
        let mut failures = 0;
        loop {
            let mut fed = false;
            let error = match self.feed(&changed, &mut fed).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            failures = if fed { 1 } else { failures + 1 };
            let wait = backoff.after(failures);
            if failures > 5 {
                tracing::warn!(%error, socket = %self.options.socket.display(), "the edge cannot be fed");
            } else {
                tracing::debug!(%error, "the edge cannot be fed; trying again");
            }
            sleep(wait).await;
        }
    }

    async fn feed(&self, changed: &Notify, fed: &mut bool) -> io::Result<std::convert::Infallible> {
        let mut stream = UnixStream::connect(&self.options.socket).await?;
        let hello = Message::Hello { version: VERSION, pid: std::process::id(), revisions: BTreeMap::new() };
        let Message::Hello { .. } = ask(&mut stream, &hello).await? else { return Err(unexpected()) };
        let mut known = Snapshot::default();
        let mut id = 0;
        loop {
            let (snapshot, revision) = self.snapshot();
            let sections = snapshot.since(&known, revision)?;
            known = snapshot;
            if !sections.is_empty() {
                id += 1;
                match ask(&mut stream, &Message::Push { id, sections }).await? {
                    Message::Ack { id: answered, problems, .. } if answered == id => publish(&self.problems, problems),
                    _ => return Err(unexpected()),
                }
            }
            *fed = true;
            self.applied.send_replace(revision);
            tokio::select! {
                biased;
                () = changed.notified() => sleep(FEED_SETTLE).await,
                () = sleep(FEED_CHECK) => {
                    let Message::Counted { counts } = ask(&mut stream, &Message::Stats).await? else { return Err(unexpected()) };
                    self.stats.send_replace(counts);
                }
                // Nobody writes to us unasked: this is the edge going away.
                gone = stream.readable() => { gone?; return Err(io::ErrorKind::UnexpectedEof.into()) }
            }
        }
    }

    /// And the revision of EndpointSlices that it is made from.
    fn snapshot(&self) -> (Snapshot, u64) {
        let slices = self.sources.slices.snapshot();
        let services = self.sources.services.snapshot();
        let (ingresses, classes, secrets) =
            (self.sources.ingresses.snapshot(), self.sources.classes.snapshot(), self.sources.secrets.snapshot());
        let (routes, backends, reasons) = routes::plan(&routes::Snapshot {
            ingresses: ingresses.iter().map(Arc::as_ref).collect(),
            classes: classes.iter().map(Arc::as_ref).collect(),
            services: services.iter().map(Arc::as_ref).collect(),
            slices: slices.iter().map(Arc::as_ref).collect(),
            secrets: secrets.iter().map(Arc::as_ref).collect(),
            revision: 0,
        });
        publish(&self.reasons, reasons);
        let zone = plan::dns::plan(services.iter().map(Arc::as_ref), slices.iter().map(Arc::as_ref), &self.options.domain, 0);
        (Snapshot { routes: Some(routes), backends: Some(backends), zone: Some(zone) }, slices.revision())
    }
}

fn publish<T: PartialEq>(to: &watch::Sender<Arc<Vec<T>>>, news: Vec<T>) {
    to.send_if_modified(|known| {
        let differs = **known != news;
        if differs {
            *known = Arc::new(news);
        }
        differs
    });
}

async fn ask(stream: &mut UnixStream, message: &Message) -> io::Result<Message> {
    let answered = async {
        write(stream, message).await?;
        read(stream).await
    };
    timeout(FEED_ANSWER, answered).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the edge answered something else")
}
