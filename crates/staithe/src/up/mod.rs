//! `staithe up`: every organ of one machine, put together. Nothing here decides; it wires.
//!
//! Order: what can be refused (not root, directory in use, ports taken, ranges that overlap) comes before anything is
//! changed; then store, API, network, registry, agent, edge, controllers. On SIGTERM the control plane ends; shims,
//! edge and the kernel's tables go on serving.

mod detach;
pub mod edge;
mod local;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use apiserver::pki::{Pki, server_names};
use artifacts::images::{Images, Options};
use base::{Ids, SharedClock, SystemClock};
use client::{CancellationToken, Client};
use network::{Cidr, PodNet};
use ports::{Identity, Tunnels};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::cli::Up;
use crate::down::settings;
use crate::install::notify_ready;
use crate::settings::Settings;

const CLUSTER_DOMAIN: &str = "cluster.local";

/// How long the organs may take to end after SIGTERM.
const END_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

pub async fn run(args: &Up) -> Result<()> {
    let s = settings(&args.given, args.config.as_deref())?;
    check_machine()?;
    if args.detach {
        return detach::run(&s).await;
    }
    start_log();
    let stop = CancellationToken::new();
    let ending = stop.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("stopping the control plane; services go on (`staithe down` stops them)");
        ending.cancel();
    });
    serve(s, stop).await
}

fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("staithe up makes namespaces, control groups and network links: run it as root (sudo staithe up)");
    }
    let missing = container::supported();
    if !missing.is_empty() {
        bail!("this kernel lacks what containers need:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("STAITHE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = crate::output::colours();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_target(false).with_writer(std::io::stderr).init();
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// What the settings mean in numbers, checked together.
struct Ranges {
    pods: Cidr,
    node_pods: Cidr,
    services: Cidr,
    kubernetes: Ipv4Addr,
    dns: Ipv4Addr,
}

fn ranges(s: &Settings) -> Result<Ranges> {
    let cidr = |flag: &str, text: &str| text.parse::<Cidr>().map_err(|e| anyhow::anyhow!("--{flag} {text:?}: {e}"));
    let (pods, services) = (cidr("pod-cidr", &s.pod_cidr)?, cidr("service-cidr", &s.service_cidr)?);
    if pods.overlaps(services) {
        bail!("--pod-cidr {pods} and --service-cidr {services} overlap: choose one of them elsewhere");
    }
    if services.prefix() > 27 {
        bail!("--service-cidr {services} is too small: /27 at least");
    }
    if pods.prefix() > 28 {
        bail!("--pod-cidr {pods} is too small: /28 at least");
    }
    let first = u32::from(services.network());
    // One machine takes the first /24 of the pod range, or all of a smaller one.
    let node_pods = Cidr::new(pods.network(), pods.prefix().max(24));
    Ok(Ranges { pods, node_pods, services, kubernetes: Ipv4Addr::from(first + 1), dns: Ipv4Addr::from(first + 10) })
}

/// Binds a port of ours, or says who has it.
async fn bind(what: &str, flag: &str, at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| format!("{what} cannot listen on {at}: choose another port with --{flag}"))
}

struct Organs {
    s: Settings,
    clock: SharedClock,
    ids: Ids,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Organs {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }
}

async fn serve(s: Settings, stop: CancellationToken) -> Result<()> {
    let started = std::time::Instant::now();
    let r = ranges(&s)?;
    let data = store::DataDir::open(&s.data_dir)?;
    make_run_dir(&s.run_dir)?;
    let node_ip = match s.node_ip {
        Some(IpAddr::V4(ip)) => ip,
        Some(IpAddr::V6(ip)) => bail!("--node-ip {ip}: only IPv4 is supported at present"),
        None => network::node_address(r.node_pods).map_err(|e| anyhow::anyhow!("{e}"))?,
    };
    let o = Organs { clock: Arc::new(SystemClock), ids: Ids::seeded(random_seed()?), stop, tasks: TaskTracker::new(), s };
    let s = &o.s;

    // Ports first: a port that is taken is the commonest mistake, and nothing has been changed yet.
    let api = bind("the API", "api-port", SocketAddr::from(([0, 0, 0, 0], s.api_port))).await?;
    let registry_port = bind("the registry", "registry-port", SocketAddr::from(([127, 0, 0, 1], s.registry_port))).await?;

    let pki = Pki::open(&s.data_dir.join("pki"), o.clock.clone())?;
    let keyring = store::Keyring::open(&s.data_dir.join("pki/encryption.keys"))?;
    let options = store::Options { keyring: Some(keyring), ..Default::default() };
    let engine = store::Embedded::open(&s.data_dir.join("store"), options)?;
    let cache = Arc::new(store::Cache::open(Arc::new(engine)).await?);

    let tunnels = Arc::new(local::LocalTunnels::default());
    let mut config = apiserver::Config::new(cache.clone(), o.clock.clone(), o.ids.clone(), tunnels.clone(), pki.token_key());
    config.service_cidr = (IpAddr::V4(r.services.network()), r.services.prefix());
    config.node_ports = s.node_ports.0..=s.node_ports.1;
    config.api_addresses = vec![IpAddr::V4(node_ip)];
    config.api_port = s.api_port;
    config.default_toleration_seconds = i64::from(s.node_grace_s);
    let server = apiserver::Server::new(config);
    server.bootstrap().await?;
    let names = server_names(&r.kubernetes.to_string(), CLUSTER_DOMAIN, &[node_ip.to_string(), s.node_name.clone()]);
    let tls = Arc::new(pki.tls(&names)?);
    o.spawn(apiserver::serve_tls(server.clone(), api, tls, o.stop.clone()));
    let kubeconfig = pki.write_admin_kubeconfig(&format!("https://127.0.0.1:{}", s.api_port), &s.instance)?;
    tracing::info!("the API answers on port {} after {} ms", s.api_port, started.elapsed().as_millis());

    let as_user = |identity: Identity| Client::new(server.transport(identity));
    let images = open_images(s)?;
    let access = Arc::new(local::RegistryAccess { client: as_user(Identity::new("system:registry", &["system:masters"])) });
    let registry = registry::Registry::new(images.blobs.clone(), images.registry.clone(), access, o.ids.clone());
    o.spawn(registry::serve(registry, registry_port, o.stop.clone().cancelled_owned()));

    let config = network_config(s, &r, node_ip);
    let network = PodNet::start(config.clone()).await?;
    let node_client = as_user(Identity::node(&s.node_name));
    let services = edge::start(&o, &r, &node_client, config).await?;
    o.spawn(services.run(o.stop.clone()));
    start_node(&o, &r, network, node_client, images, &tunnels)?;
    let clients = |name: &str| Client::new(server.transport(controller_identity(name)));
    let mut config = controllers::Config::new(pki.ca_pem());
    config.node_lifecycle.grace = std::time::Duration::from_secs(u64::from(s.node_grace_s));
    let controllers = controllers::run(&clients, o.clock.clone(), o.ids.clone(), config, o.stop.clone());
    o.spawn(async move { drop(controllers.await) });

    eprintln!("{}", detach::READY);
    eprintln!("  API         https://127.0.0.1:{}   (export KUBECONFIG={})", s.api_port, kubeconfig.display());
    eprintln!("  registry    localhost:{}", s.registry_port);
    eprintln!("  router      http://{node_ip}:{}  https://{node_ip}:{}", s.http_port, s.https_port);
    notify_ready();

    o.stop.cancelled().await;
    server.stop();
    o.tasks.close();
    if tokio::time::timeout(END_WITHIN, o.tasks.wait()).await.is_err() {
        tracing::warn!("some organs did not end within {} s", END_WITHIN.as_secs());
    }
    drop(data);
    Ok(())
}

/// `system:kube-scheduler`, or the service account that upstream gives the controller.
fn controller_identity(name: &str) -> Identity {
    match name {
        "kube-scheduler" => Identity::new("system:kube-scheduler", &[]),
        name => Identity::service_account("kube-system", name),
    }
}

/// The run directory holds keys of ingresses and secrets of pods: nobody else may look in.
fn make_run_dir(run: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run).with_context(|| format!("create {}", run.display()))?;
    std::fs::set_permissions(run, std::fs::Permissions::from_mode(0o700)).with_context(|| format!("{}", run.display()))
}

fn random_seed() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("random bytes")?;
    Ok(u64::from_ne_bytes(bytes))
}

fn open_images(s: &Settings) -> Result<Images> {
    let remote = artifacts::Remote::new(s.plain_registries.clone(), vec![]);
    let embedded = crate::verbs::image::embedded(s.registry_port);
    Ok(Images::open(Options { root: s.data_dir.join("artifacts"), remote, embedded })?)
}

fn network_config(s: &Settings, r: &Ranges, node_address: Ipv4Addr) -> network::Config {
    network::Config {
        instance: s.instance.clone(),
        run_dir: s.run_dir.clone(),
        node_name: s.node_name.clone(),
        node_address,
        pod_cidr: r.node_pods,
        cluster_cidr: r.pods,
        service_cidr: r.services,
        dns_address: r.dns,
        dns_port: s.dns_port,
    }
}

/// The agent of this machine, registered with the API's tunnel.
fn start_node(o: &Organs, r: &Ranges, network: PodNet, client: Client, images: Images, tunnels: &local::LocalTunnels) -> Result<()> {
    let s = &o.s;
    let exe = std::env::current_exe().context("find this program")?;
    let shim = vec![exe.into_os_string(), "shim".into()];
    let containers = container::ContainerDriver::new(container::Config::new(&s.instance, &s.run_dir, &s.data_dir, shim));
    let drivers: BTreeMap<String, Arc<dyn driver::Driver>> =
        BTreeMap::from([("container".to_string(), containers as Arc<dyn driver::Driver>)]);
    let mut config = node::Config::new(
        &s.node_name,
        client,
        drivers,
        Arc::new(network),
        Arc::new(local::NodeImages(images)),
        o.clock.clone(),
        o.ids.clone(),
        s.data_dir.clone(),
        s.run_dir.clone(),
    );
    config.pod_cidr = r.node_pods.to_string();
    config.kubernetes_service = (r.kubernetes.to_string(), 443);
    config.image_budget_bytes = s.image_budget_bytes;
    let agent = node::Agent::new(config);
    tunnels.register(&s.node_name, Arc::new(agent.clone()));
    let stop = o.stop.clone();
    o.spawn(async move { agent.run(stop).await });
    Ok(())
}
