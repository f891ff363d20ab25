//! The container driver and its shim: namespaces, cgroups, overlay, seccomp.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

mod client;

pub use client::ContainerDriver;

/// Where a driver keeps its things, and how its shim is started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Prefix of cgroups; several instances live on one machine side by side.
    pub instance: String,
    /// tmpfs; sockets, pod and state files: `<run_dir>/pods/<uid>/`
    pub run_dir: PathBuf,
    /// Disk; writable layers: `<data_dir>/pods/<uid>/roots/<container>-<attempt>/`
    pub data_dir: PathBuf,
    /// The command that ends in `shim_main`: `[exe, "shim"]`.
    pub shim: Vec<OsString>,
    /// Where the kernel's control groups are mounted: `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
}

impl Config {
    pub fn new(instance: &str, run_dir: &Path, data_dir: &Path, shim: Vec<OsString>) -> Self {
        Self {
            instance: instance.to_string(),
            run_dir: run_dir.to_path_buf(),
            data_dir: data_dir.to_path_buf(),
            shim,
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
        }
    }
}

/// The shim's whole life; `args` are what follows the word `shim`. Call it first thing in `main`, before any thread.
pub fn shim_main(_args: impl IntoIterator<Item = OsString>) -> ! {
    std::process::exit(70)
}

/// What `down` takes away: every shim, process, control group and mount of the instance, also where the state directory
/// is partial. Each line names one thing; with `dry_run` they are only listed.
pub fn sweep(_instance: &str, _run_dir: &Path, _dry_run: bool) -> Vec<String> {
    Vec::new()
}

/// Kernel features that are missing here, in words; empty on a machine that can run containers.
pub fn supported() -> Vec<String> {
    Vec::new()
}
