//! What the kernel must have, asked before the first container needs it.

use std::fs;
use std::path::Path;

use crate::cgroup::Cgroups;

/// Kernel features that are missing here, in words; empty on a machine that can run containers.
pub fn supported() -> Vec<String> {
    let mut missing = Vec::new();
    let mut need = |there: bool, what: &str| {
        if !there {
            missing.push(what.to_string());
        }
    };
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_fs = |name: &str| file_systems.split_whitespace().any(|f| f == name);
    for (name, option) in [("overlay", "CONFIG_OVERLAY_FS"), ("tmpfs", "CONFIG_TMPFS"), ("mqueue", "CONFIG_POSIX_MQUEUE")] {
        need(has_fs(name) || module(name), &format!("file system {name} ({option})"));
    }
    for kind in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        need(Path::new("/proc/self/ns").join(kind).exists(), &format!("{kind} namespaces (CONFIG_NAMESPACES)"));
    }
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    need(actions.contains("errno"), "system call filters (CONFIG_SECCOMP_FILTER)");
    need(answers(libc::SYS_clone3), "clone3 (Linux 5.3; some outer sandboxes forbid it)");
    need(answers(libc::SYS_mount_setattr), "mount_setattr (Linux 5.12)");
    need(answers(libc::SYS_openat2), "openat2 (Linux 5.6)");
    match Cgroups::detect(Path::new("/sys/fs/cgroup"), "") {
        Ok(cgroups) => {
            for controller in cgroups.missing() {
                need(false, &format!("control group controller {controller} (on some machines: boot with cgroup_enable={controller})"));
            }
        }
        Err(failure) => need(false, &failure.text),
    }
    missing
}

/// A file system that comes as a module is loaded by its first mount.
fn module(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let listed = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    listed.lines().any(|l| l.split(':').next().is_some_and(|p| p.rsplit('/').next().is_some_and(|f| f.starts_with(&format!("{name}.ko")))))
}

/// A call without arguments is refused for its arguments, where there is such a call.
fn answers(number: libc::c_long) -> bool {
    // SAFETY: null pointers and zero sizes: every one of these calls refuses them.
    let ret = unsafe { libc::syscall(number, 0, 0, 0, 0, 0) };
    ret >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}
