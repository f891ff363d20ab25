//! What a group has used: processor, memory, processes, disk; and how often the kernel killed for memory.

use std::fs;
use std::path::PathBuf;

use driver::Usage;

use super::Group;

fn number(dir: Option<PathBuf>, file: &str) -> u64 {
    dir.and_then(|d| fs::read_to_string(d.join(file)).ok()).and_then(|t| t.trim().parse().ok()).unwrap_or_default()
}

/// `key value` lines.
fn field(text: &str, key: &str) -> u64 {
    let of = |l: &str| l.split_once(' ').filter(|(k, _)| *k == key).and_then(|(_, v)| v.trim().parse().ok());
    text.lines().find_map(of).unwrap_or_default()
}

/// `8:0 Read 4096` lines.
fn blkio_sum(text: &str, what: &str) -> u64 {
    let of = |l: &str| l.split_whitespace().nth(1).filter(|w| *w == what).and_then(|_| l.split_whitespace().nth(2)?.parse::<u64>().ok());
    text.lines().filter_map(of).sum()
}

/// `8:0 rbytes=4096 wbytes=0 …` lines.
fn io_sum(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
}

impl Group<'_> {
    fn text(&self, controller: &str, file: &str) -> String {
        self.dir(controller).and_then(|d| fs::read_to_string(d.join(file)).ok()).unwrap_or_default()
    }

    pub fn usage(&self) -> Usage {
        let memory = self.text("memory", "memory.stat");
        let pids = number(self.dir("pids"), "pids.current");
        if self.cgroups.unified {
            let io = self.text("io", "io.stat");
            let cpu = fs::read_to_string(self.main_dir().join("cpu.stat")).unwrap_or_default();
            let current = number(self.dir("memory"), "memory.current");
            return Usage {
                cpu_usec: field(&cpu, "usage_usec"),
                memory_bytes: current.saturating_sub(field(&memory, "inactive_file")),
                memory_rss_bytes: field(&memory, "anon"),
                pids: if self.dir("pids").is_some() { pids } else { self.procs().len() as u64 },
                io_read_bytes: io_sum(&io, "rbytes"),
                io_write_bytes: io_sum(&io, "wbytes"),
                writable_layer_bytes: 0,
            };
        }
        let io = self.text("blkio", "blkio.throttle.io_service_bytes_recursive");
        let current = number(self.dir("memory"), "memory.usage_in_bytes");
        Usage {
            cpu_usec: number(self.dir("cpuacct"), "cpuacct.usage") / 1000,
            memory_bytes: current.saturating_sub(field(&memory, "total_inactive_file")),
            memory_rss_bytes: field(&memory, "total_rss"),
            pids,
            io_read_bytes: blkio_sum(&io, "Read"),
            io_write_bytes: blkio_sum(&io, "Write"),
            writable_layer_bytes: 0,
        }
    }

    /// Processes of the group that were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.cgroups.unified { "memory.events" } else { "memory.oom_control" };
        field(&self.text("memory", file), "oom_kill")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        assert_eq!(field("oom 3\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), 1);
        assert_eq!(blkio_sum("8:0 Read 10\n8:0 Write 5\n8:16 Read 7\nTotal 22\n", "Read"), 17);
        assert_eq!(io_sum("8:0 rbytes=10 wbytes=4 rios=1\n8:16 rbytes=5 wbytes=1\n", "rbytes"), 15);
    }
}
