//! What `down` takes away: whatever of an instance is on the machine, found in the kernel and not in any state of ours.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroups;
use crate::limits;
use crate::proto::{self, PodFile};
use crate::sys;

/// Removes every shim, process, control group and mount of the instance, and its pods' directories, also where the state
/// directory is partial or gone. Each line names one thing; with `dry_run` they are only listed.
pub fn sweep(instance: &str, run_dir: &Path, dry_run: bool) -> Vec<String> {
    let mut found = Vec::new();
    let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup"), instance).ok();
    let pods = run_dir.join("pods");
    let mut victims = shims(&pods);
    for pid in cgroups.iter().flat_map(|c| c.all().procs()) {
        if !victims.contains(&pid) {
            victims.push(pid);
        }
    }
    victims.retain(|pid| *pid != std::process::id() as i32);
    for pid in &victims {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.push(format!("process {pid} ({})", name.trim()));
    }
    if !dry_run {
        victims.iter().for_each(|pid| drop(sys::kill(*pid, libc::SIGKILL)));
        if let Some(cgroups) = &cgroups {
            cgroups.all().kill(limits::KILL);
        }
    }
    if let Some(cgroups) = &cgroups {
        found.extend(cgroups.all().paths().iter().map(|p| format!("control group {}", p.display())));
        if !dry_run {
            let _ = cgroups.all().remove(limits::CGROUP_REMOVE);
        }
    }
    for mount in mounts_below(&pods) {
        found.push(format!("mount {}", mount.display()));
        if !dry_run {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
    for dir in fs::read_dir(&pods).into_iter().flatten().flatten().map(|e| e.path()) {
        found.extend(directories(&dir, dry_run));
    }
    found
}

/// A pod's directory, and that of its writable layers.
fn directories(dir: &Path, dry_run: bool) -> Vec<String> {
    let file: Option<PodFile> = fs::read(dir.join(proto::POD_FILE)).ok().and_then(|t| serde_json::from_slice(&t).ok());
    let roots = file.map(|f| f.roots).filter(|r| r.ends_with("roots") && r.is_dir());
    let all = roots.into_iter().chain([dir.to_path_buf()]);
    let remove = |d: PathBuf| {
        if !dry_run {
            let _ = fs::remove_dir_all(&d);
        }
        format!("directory {}", d.display())
    };
    all.map(remove).collect()
}

/// Shims by their command line: `… --pod <run_dir>/pods/<uid>`.
fn shims(pods: &Path) -> Vec<i32> {
    let is_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        words.windows(2).any(|w| w[0] == "--pod" && Path::new(&w[1]).parent() == Some(pods))
    };
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter_map(|n| n.parse().ok()).filter(is_ours).collect()
}

/// Mount points below a directory, innermost first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|l| l.split(' ').nth(4)).map(|p| PathBuf::from(p.replace("\\040", " ")));
    let mut found: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    found.reverse();
    found
}
