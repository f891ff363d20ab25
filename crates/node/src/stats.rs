//! `stats/summary`: what the node and its pods use, as metrics collectors read it from a kubelet.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base::{Timestamp, rfc3339};
use driver::Usage;
use serde_json::{Value, json};

use crate::agent::{Shared, View};
use crate::limits::RATE_WINDOW_MIN;
use crate::machine;

/// CPU time at a moment, and the rate since the one before.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Timestamp,
    cpu_usec: u64,
    nano_cores: u64,
}

/// The last sample of each container (the pod itself under an empty name, the node under an empty uid).
#[derive(Default)]
pub(crate) struct Samples(Mutex<BTreeMap<(String, String), Sample>>);

impl Samples {
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).retain(|(pod, _), _| pod != uid);
    }

    /// Nanocores since the last sample. Two questions in a row get the same answer.
    fn rate(&self, uid: &str, container: &str, cpu_usec: u64, now: Timestamp) -> u64 {
        let mut samples = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let key = (uid.to_string(), container.to_string());
        let nano_cores = match samples.get(&key) {
            None => 0,
            Some(last) if cpu_usec < last.cpu_usec => 0,
            Some(last) => {
                let elapsed = now.duration_since(last.at);
                if elapsed.is_negative() || elapsed.unsigned_abs() < RATE_WINDOW_MIN {
                    return last.nano_cores;
                }
                let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
                (u128::from(cpu_usec - last.cpu_usec) * 1_000_000_000 / u128::from(micros)) as u64
            }
        };
        samples.insert(key, Sample { at: now, cpu_usec, nano_cores });
        nano_cores
    }
}

/// One sample of every pod: what later rates are measured from. Returns what drivers said.
pub(crate) async fn sample(shared: &Shared) -> Vec<(View, driver::Stats)> {
    let mut all = Vec::new();
    for view in shared.views().into_iter().filter(|v| v.ready) {
        let Some(driver) = view.driver.clone() else { continue };
        let Ok(stats) = driver.stats(&view.uid).await else { continue };
        let now = shared.config.clock.now();
        for (name, usage) in &stats.containers {
            shared.samples.rate(&view.uid, name, usage.cpu_usec, now);
        }
        shared.samples.rate(&view.uid, "", stats.pod.cpu_usec, now);
        all.push((view, stats));
    }
    shared.samples.rate("", "", node_cpu_usec(), shared.config.clock.now());
    all
}

pub(crate) async fn summary(shared: &Shared) -> Value {
    let pods: Vec<Value> = sample(shared).await.iter().map(|(view, stats)| pod(shared, view, stats)).collect();
    json!({ "node": node(shared), "pods": pods })
}

fn node(shared: &Shared) -> Value {
    let now = shared.config.clock.now();
    let (total, available) = (machine::meminfo("MemTotal"), machine::meminfo("MemAvailable"));
    let cpu = node_cpu_usec();
    let disk = machine::disk(&shared.config.data_dir).unwrap_or_default();
    let used = total.saturating_sub(available);
    json!({
        "nodeName": shared.config.node_name,
        "startTime": rfc3339(boot_time(now)),
        "cpu": cpu_json(cpu, shared.samples.rate("", "", cpu, now), now),
        "memory": {
            "time": rfc3339(now), "availableBytes": available,
            "usageBytes": total.saturating_sub(machine::meminfo("MemFree")), "workingSetBytes": used,
            "rssBytes": machine::meminfo("AnonPages"),
        },
        "fs": {
            "time": rfc3339(now), "availableBytes": disk.available, "capacityBytes": disk.total,
            "usedBytes": disk.total.saturating_sub(disk.available), "inodes": disk.inodes, "inodesFree": disk.inodes_free,
        },
    })
}

fn pod(shared: &Shared, view: &View, stats: &driver::Stats) -> Value {
    let now = shared.config.clock.now();
    let rate = |name: &str, u: &Usage| shared.samples.rate(&view.uid, name, u.cpu_usec, now);
    let containers: Vec<Value> = stats
        .containers
        .iter()
        .map(|(name, u)| {
            let started = view.containers.get(name).and_then(|c| c.started_at).map(rfc3339);
            json!({
                "name": name,
                "startTime": started,
                "cpu": cpu_json(u.cpu_usec, rate(name, u), now),
                "memory": memory_json(u, now),
                "rootfs": { "time": rfc3339(now), "usedBytes": u.writable_layer_bytes },
            })
        })
        .collect();
    let started = view.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| rfc3339(t.0));
    json!({
        "podRef": { "name": view.name(), "namespace": view.namespace(), "uid": view.uid },
        "startTime": started,
        "containers": containers,
        "cpu": cpu_json(stats.pod.cpu_usec, rate("", &stats.pod), now),
        "memory": memory_json(&stats.pod, now),
        "network": { "time": rfc3339(now), "name": "eth0", "rxBytes": stats.network_rx_bytes, "txBytes": stats.network_tx_bytes },
        "process_stats": { "process_count": stats.pod.pids },
    })
}

fn cpu_json(cpu_usec: u64, nano_cores: u64, now: Timestamp) -> Value {
    json!({ "time": rfc3339(now), "usageNanoCores": nano_cores, "usageCoreNanoSeconds": cpu_usec.saturating_mul(1000) })
}

fn memory_json(u: &Usage, now: Timestamp) -> Value {
    json!({ "time": rfc3339(now), "usageBytes": u.memory_bytes, "workingSetBytes": u.memory_bytes, "rssBytes": u.memory_rss_bytes })
}

/// Busy time of all cores since the boot.
fn node_cpu_usec() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum();
    busy * 10_000
}

fn boot_time(now: Timestamp) -> Timestamp {
    let uptime = machine::line("/proc/uptime");
    let seconds = uptime.split('.').next().and_then(|s| s.parse::<i64>().ok()).unwrap_or(0);
    now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_a_second_and_survive_a_restart() {
        let samples = Samples::default();
        let at = |ms: i64| Timestamp::from_millisecond(1_000_000_000_000 + ms).unwrap();
        assert_eq!(samples.rate("u", "c", 0, at(0)), 0);
        assert_eq!(samples.rate("u", "c", 1_000_000, at(2_000)), 500_000_000);
        assert_eq!(samples.rate("u", "c", 1_100_000, at(2_100)), 500_000_000);
        // The counter of a new attempt begins anew.
        assert_eq!(samples.rate("u", "c", 10, at(5_000)), 0);
        samples.forget("u");
        assert_eq!(samples.rate("u", "c", 9, at(9_000)), 0);
    }
}
