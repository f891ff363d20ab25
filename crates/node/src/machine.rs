//! What the machine has and how it is doing: the facts behind a node's capacity and conditions.

use std::path::Path;

use crate::config::{Capacity, Reserved};
use crate::limits::{DISK_AVAILABLE_PERCENT, INODES_FREE_PERCENT, MEMORY_AVAILABLE_MIN, PIDS_FREE_PERCENT};

/// What pods may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_bytes: u64,
    pub pods: u32,
}

pub(crate) fn capacity(settings: &Capacity, data_dir: &Path) -> Amounts {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let disk = disk(data_dir).unwrap_or_default();
    Amounts {
        cpu_millis: settings.cpu_millis.unwrap_or(cores * 1000),
        memory_bytes: settings.memory_bytes.unwrap_or_else(|| meminfo("MemTotal")),
        ephemeral_bytes: settings.ephemeral_storage_bytes.unwrap_or(disk.total),
        pods: settings.pods.unwrap_or(110),
    }
}

/// Capacity less what is kept for the system; never less than half.
pub(crate) fn allocatable(all: Amounts, reserved: Reserved) -> Amounts {
    let less = |total: u64, kept: u64| total.saturating_sub(kept).max(total / 2);
    Amounts {
        cpu_millis: less(all.cpu_millis, reserved.cpu_millis),
        memory_bytes: less(all.memory_bytes, reserved.memory_bytes),
        ephemeral_bytes: less(all.ephemeral_bytes, all.ephemeral_bytes / 100 * reserved.ephemeral_storage_percent.min(100)),
        pods: all.pods,
    }
}

/// A line of `/proc/meminfo`, in bytes; 0 where it is missing.
pub(crate) fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    pub total: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

pub(crate) fn disk(path: &Path) -> Option<Disk> {
    let s = rustix::fs::statvfs(path).ok()?;
    Some(Disk { total: s.f_blocks * s.f_frsize, available: s.f_bavail * s.f_frsize, inodes: s.f_files, inodes_free: s.f_favail })
}

/// Which pressure conditions hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

pub(crate) fn pressure(data_dir: &Path) -> Pressure {
    let available = meminfo("MemAvailable");
    let disk = disk(data_dir).unwrap_or_default();
    let short = |free: u64, total: u64, percent: u64| total > 0 && free < total / 100 * percent;
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    let pid_max = number("/proc/sys/kernel/pid_max");
    let threads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let threads = threads.split_whitespace().nth(3).and_then(|t| t.split('/').nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    Pressure {
        memory: available > 0 && available < MEMORY_AVAILABLE_MIN,
        disk: short(disk.available, disk.total, DISK_AVAILABLE_PERCENT) || short(disk.inodes_free, disk.inodes, INODES_FREE_PERCENT),
        pids: short(pid_max.saturating_sub(threads), pid_max, PIDS_FREE_PERCENT),
    }
}

/// `PRETTY_NAME` of the operating system.
pub(crate) fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_string(), |n| n.trim_matches('"').to_string())
}

pub(crate) fn line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_something() {
        let all = capacity(&Capacity::default(), Path::new("/"));
        assert!(all.cpu_millis >= 1000 && all.memory_bytes > 1 << 20 && all.ephemeral_bytes > 0 && all.pods == 110);
        let given = Capacity { cpu_millis: Some(150), memory_bytes: Some(1 << 30), pods: Some(3), ..Capacity::default() };
        let free = allocatable(capacity(&given, Path::new("/")), Reserved::default());
        assert_eq!((free.cpu_millis, free.memory_bytes, free.pods), (75, (1 << 30) - (200 << 20), 3));
    }
}
