//! The container driver and its shim.
//!
//! The agent's half (`ContainerDriver`) starts one shim a pod by executing the program again, and talks to it over a
//! socket. The shim's half (`shim_main`) is a container runtime of our own: namespaces, control groups, overlay mounts,
//! capabilities and system call filters by direct calls to the kernel, in a process without threads. Neither half knows
//! anything of images, of the network's set-up or of the API.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

mod cgroup;
mod client;
mod identity;
mod limits;
mod process;
mod proto;
mod rootfs;
mod seccomp;
mod shim;
mod supported;
mod sweep;
mod sys;
mod target;

pub use client::ContainerDriver;
pub use shim::shim_main;
pub use supported::supported;
pub use sweep::sweep;

/// Moves the calling process out of its starter's control groups to where the instance's shims are: what manages the starter
/// (systemd, say) neither counts it in nor ends it. Before any thread.
pub fn leave_starter(instance: &str) -> Result<(), String> {
    cgroup::Cgroups::detect(Path::new("/sys/fs/cgroup"), instance).and_then(|c| c.enter_shims()).map_err(|e| e.to_string())
}

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
