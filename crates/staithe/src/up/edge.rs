//! The edge: what the agent starts and feeds, and what the process itself is made of.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use base::Timestamp;
use client::{CancellationToken, Client};
use network::{Cidr, ServiceProxy, Sources, dns};
use router::edge::{Edge, Feeder, FeederOptions, HolderOptions, Sockets, ensure_holder, socket_path};

use super::{CLUSTER_DOMAIN, Organs, Ranges};

/// What `staithe edge` is told: flags of a command that only the holder calls.
struct Words {
    run_dir: PathBuf,
    https_port: u16,
    ranges: Vec<Cidr>,
}

fn parse(words: &[String]) -> Option<Words> {
    let [run_dir, https_port, ranges @ ..] = words else { return None };
    let ranges = ranges.iter().map(|r| r.parse().ok()).collect::<Option<Vec<Cidr>>>()?;
    Some(Words { run_dir: run_dir.into(), https_port: https_port.parse().ok()?, ranges })
}

/// Binds the sockets in a holder of their own and starts the edge with them, or finds both running.
pub(super) async fn start(o: &Organs, r: &Ranges, client: &Client, config: network::Config) -> Result<ServiceProxy> {
    let s = &o.s;
    let exe = std::env::current_exe().context("find this program")?;
    let exe = exe.to_string_lossy().trim_end_matches(" (deleted)").to_string();
    let any = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let words =
        [exe.clone(), "edge".into(), s.run_dir.display().to_string(), s.https_port.to_string(), r.pods.to_string(), r.services.to_string()];
    let options = HolderOptions {
        run_dir: s.run_dir.clone(),
        http: any(s.http_port),
        https: any(s.https_port),
        dns: any(s.dns_port),
        edge: words.to_vec(),
        build: build(&exe),
    };
    let command = vec![exe, "edge-holder".to_string(), s.instance.clone()];
    tokio::task::spawn_blocking(move || ensure_holder(&command, &options)).await?.context("the edge did not start")?;

    let sources = Sources::start(client, &s.node_name);
    let edge_sources = router::edge::Sources::start(client, client, sources.services.clone(), sources.slices.clone());
    let feeder = Feeder::new(FeederOptions { socket: socket_path(&s.run_dir), domain: CLUSTER_DOMAIN.into() }, edge_sources);
    o.spawn(feeder.run(o.stop.clone()));
    Ok(ServiceProxy::new(config, sources))
}

/// Tells one build of this program from another: an edge of another build is replaced.
fn build(exe: &str) -> String {
    let changed = std::fs::metadata(exe).and_then(|m| m.modified()).ok().and_then(|t| Timestamp::try_from(t).ok());
    format!("{} {}", env!("CARGO_PKG_VERSION"), changed.map(|t| t.to_string()).unwrap_or_default())
}

/// The edge process: router, DNS server and feed on inherited sockets, until SIGTERM.
pub fn main(words: &[String]) -> ExitCode {
    // Before any thread: it takes descriptors into ownership.
    let sockets = Sockets::inherited();
    let run = || -> Result<()> {
        let words = parse(words).context("the edge is started by its holder, not by hand")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(words, sockets?))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(words: Words, sockets: Sockets) -> Result<()> {
    super::start_log();
    let stop = CancellationToken::new();
    let edge = Edge::start(&words.run_dir, sockets, words.https_port)?;
    let (udp, tcp) = edge.take_dns().context("the edge was started without its DNS sockets")?;
    let names = dns::serve(udp, tcp, edge.zone(), dns::Options::new(words.ranges), Arc::default(), stop.clone());
    let ending = stop.clone();
    tokio::spawn(async move {
        super::wait_for_signal().await;
        ending.cancel();
    });
    let (web, names) = tokio::join!(edge.serve(stop.clone()), names);
    web?;
    names?;
    Ok(())
}
