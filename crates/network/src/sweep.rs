//! `staithe down`: everything of an instance out of the kernel.

use std::fs;
use std::path::Path;

use crate::instance::Instance;
use crate::netlink::{Result, Socket};
use crate::rtnl::{self, LOOPBACK, PROTOCOL, Via};
use crate::{firewall, netns, nft, sysctl};

/// Removes an instance's tables, firewall rules, links, routes, addresses, namespaces and settings, or with `dry_run`
/// only lists them. Works without any of them being there, and without the agent.
///
/// One line for each thing, and for each failure one that begins with `cannot`.
pub fn sweep(instance: &str, run_dir: &Path, dry_run: bool) -> Vec<String> {
    let instance = Instance::new(instance);
    let mut lines = Vec::new();
    let mut note = |result: Result<Vec<String>>| match result {
        Ok(removed) => lines.extend(removed),
        Err(e) => lines.push(if e.what.starts_with("cannot") { e.to_string() } else { format!("cannot remove: {e}") }),
    };
    note(nft::open().and_then(|mut s| tables(&mut s, &instance, dry_run)));
    note(nft::open().and_then(|mut s| firewall::close(&mut s, &instance, dry_run)));
    note(rtnl::open().and_then(|mut s| links(&mut s, &instance, dry_run)));
    note(rtnl::open().and_then(|mut s| routes(&mut s, &instance, dry_run)));
    lines.extend(namespaces(run_dir, dry_run));
    // Another instance on this machine still needs forwarding; its own `down` restores.
    if rtnl::open().and_then(|mut s| others(&mut s, &instance)).is_ok_and(|others| !others) {
        lines.extend(sysctl::restore(run_dir, dry_run));
    }
    if !dry_run {
        let _ = fs::remove_dir_all(run_dir.join("network"));
    }
    lines
}

fn tables(socket: &mut Socket, instance: &Instance, dry_run: bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for table in [instance.services_table(), instance.fence_table()] {
        let there = if dry_run { nft::table_handle(socket, &table)?.is_some() } else { nft::remove_table(socket, &table)? };
        if there {
            removed.push(format!("nftables table ip {table}"));
        }
    }
    Ok(removed)
}

fn links(socket: &mut Socket, instance: &Instance, dry_run: bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for link in rtnl::links(socket)?.into_iter().filter(|l| l.group == instance.tag) {
        if !dry_run {
            rtnl::delete_link(socket, link.index)?;
        }
        removed.push(format!("link {}", link.name));
    }
    Ok(removed)
}

fn routes(socket: &mut Socket, instance: &Instance, dry_run: bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut node_address = None;
    let ours = |r: &rtnl::Route| r.protocol == PROTOCOL && r.metric == instance.tag;
    // Routes to pods go with their links.
    let to_pod = |r: &rtnl::Route| matches!(r.via, Via::Link(link) if link != LOOPBACK);
    for route in rtnl::routes(socket)?.into_iter().filter(|r| ours(r) && !to_pod(r)) {
        if route.via == Via::Link(LOOPBACK) {
            node_address = route.source;
        }
        if !dry_run {
            rtnl::delete_route(socket, &route)?;
        }
        removed.push(format!("route {}", route.to));
    }
    // An address that the node gave itself on `lo` out of the pod range.
    for (link, address) in rtnl::addresses(socket)? {
        if link == LOOPBACK && Some(address) == node_address && !address.is_loopback() {
            if !dry_run {
                rtnl::delete_address(socket, link, address)?;
            }
            removed.push(format!("address {address} on lo"));
        }
    }
    Ok(removed)
}

fn others(socket: &mut Socket, instance: &Instance) -> Result<bool> {
    Ok(rtnl::routes(socket)?.iter().any(|r| r.protocol == PROTOCOL && r.metric != instance.tag))
}

fn namespaces(run_dir: &Path, dry_run: bool) -> Vec<String> {
    let dir = run_dir.join("netns");
    let mut lines: Vec<String> =
        fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| format!("namespace {}", e.path().display())).collect();
    if !dry_run && let Err(e) = netns::retire(&dir) {
        lines.push(format!("cannot remove {}: {e}", dir.display()));
    }
    lines
}
