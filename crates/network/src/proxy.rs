//! The loop that keeps the kernel's Service table true: informers, planner, writer.
//!
//! It publishes one number: the revision of EndpointSlices that the kernel holds. Whoever takes a pod out waits for
//! that number before the pod is told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Backoff;
use client::{CancellationToken, Client, Informer};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use plan::Reason;
use tokio::sync::{Notify, watch};

use crate::limits::{SERVICES_CHECK, SERVICES_RETRY_MAX, SERVICES_RETRY_MIN, SERVICES_SETTLE};
use crate::netlink::{self, Socket};
use crate::pods::Config;
use crate::services::Writer;
use crate::{fence, firewall, nft, pods};

/// What the loop needs to see. All of the node's identity.
#[derive(Clone)]
pub struct Sources {
    pub services: Informer<Service>,
    pub slices: Informer<EndpointSlice>,
    /// Those of this node: for their host ports.
    pub pods: Informer<Pod>,
}

impl Sources {
    pub fn start(client: &Client, node: &str) -> Self {
        Self {
            services: Informer::start(client),
            slices: Informer::start(client),
            pods: Informer::start_scoped(client, "", "", &format!("spec.nodeName={node}")),
        }
    }
}

/// Service load balancing of one node. See the module.
pub struct ServiceProxy {
    config: Config,
    sources: Sources,
    applied: watch::Sender<u64>,
    reasons: watch::Sender<Arc<Vec<Reason>>>,
}

impl ServiceProxy {
    pub fn new(config: Config, sources: Sources) -> Self {
        Self { config, sources, applied: watch::Sender::new(0), reasons: watch::Sender::new(Arc::default()) }
    }

    /// The revision of EndpointSlices that the kernel's table holds; 0 before the first.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// What could not be granted (an address or port that two want), for Events.
    pub fn reasons(&self) -> watch::Receiver<Arc<Vec<Reason>>> {
        self.reasons.subscribe()
    }

    /// Runs until it is told to stop; the table stays, for Services outlive the control plane.
    pub async fn run(self, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let wake = |changed: &Arc<Notify>| {
            let changed = changed.clone();
            move || changed.notify_one()
        };
        let woken = (wake(&changed), wake(&changed), wake(&changed));
        self.sources.services.on_change(move |_| woken.0());
        self.sources.slices.on_change(move |_| woken.1());
        self.sources.pods.on_change(move |_| woken.2());
        let ready = async {
            self.sources.services.ready().await;
            self.sources.slices.ready().await;
            self.sources.pods.ready().await;
        };
        // A half-seen world would take Services away that are there.
        tokio::select! { biased; () = stop.cancelled() => return, () = ready => {} }
        let mut kernel = Some(Kernel::new(&self.config));
        let backoff = Backoff::new(SERVICES_RETRY_MIN, SERVICES_RETRY_MAX);
        let mut failures = 0;
        loop {
            let Some(mut at_work) = kernel.take() else { return };
            let job = self.job();
            let revision = job.revision;
            let Ok((at_work, result)) = tokio::task::spawn_blocking(move || {
                let result = at_work.apply(job);
                (at_work, result)
            })
            .await
            else {
                tracing::error!("the writer of the service table has panicked");
                return;
            };
            kernel = Some(at_work);
            let wait = match result {
                Ok(()) => {
                    failures = 0;
                    self.applied.send_replace(revision);
                    SERVICES_CHECK
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, failures, "cannot write the service table");
                    backoff.after(failures)
                }
            };
            if !self.pause(&stop, &changed, wait, failures > 0).await {
                return;
            }
        }
    }

    /// Until something changes or it is time to check; after a failure no change makes it shorter.
    async fn pause(&self, stop: &CancellationToken, changed: &Notify, wait: Duration, failed: bool) -> bool {
        let woken = async {
            if failed {
                std::future::pending::<()>().await;
            }
            changed.notified().await;
            tokio::time::sleep(SERVICES_SETTLE).await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = woken => true,
            () = tokio::time::sleep(wait) => true,
        }
    }

    fn job(&self) -> Job {
        let slices = self.sources.slices.snapshot();
        let services = self.sources.services.snapshot();
        let pods = self.sources.pods.snapshot();
        let node = &self.config.node_name;
        let (table, reasons) =
            plan::services::plan(services.iter().map(Arc::as_ref), slices.iter().map(Arc::as_ref), pods.iter().map(Arc::as_ref), node);
        self.reasons.send_if_modified(|known| {
            let differs = **known != reasons;
            if differs {
                *known = Arc::new(reasons);
            }
            differs
        });
        Job { table, revision: slices.revision() }
    }
}

struct Job {
    table: plan::services::Table,
    revision: u64,
}

/// The blocking side: sockets and what was written by them.
struct Kernel {
    config: Config,
    writer: Writer,
    filter: Option<Socket>,
    checked: Option<Instant>,
    warnings: Vec<String>,
}

impl Kernel {
    fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            writer: Writer::new(&config.instance, config.cluster_cidr),
            filter: None,
            checked: None,
            warnings: Vec::new(),
        }
    }

    fn apply(&mut self, job: Job) -> netlink::Result<()> {
        // After an error the socket may hold answers to questions nobody remembers.
        let mut socket = match self.filter.take() {
            Some(socket) => socket,
            None => nft::open()?,
        };
        if self.checked.is_none_or(|at| at.elapsed() >= SERVICES_CHECK) {
            self.check(&mut socket)?;
        }
        let moved = self.writer.apply(&mut socket, job.table)?;
        let removed = crate::forget_moved(&mut socket, &moved)?;
        if removed > 0 {
            tracing::debug!(removed, "tracked UDP connections of gone endpoints forgotten");
        }
        self.filter = Some(socket);
        Ok(())
    }

    /// Others write to the kernel too: tables are flushed, network managers remove routes, firewalls are started.
    fn check(&mut self, socket: &mut Socket) -> netlink::Result<()> {
        fence::ensure(socket, &self.config)?;
        pods::put_fence_routes(&self.config)?;
        let warnings = firewall::open(socket, &self.config)?;
        for warning in warnings.iter().filter(|w| !self.warnings.contains(w)) {
            tracing::warn!("{warning}");
        }
        self.warnings = warnings;
        self.checked = Some(Instant::now());
        Ok(())
    }
}
