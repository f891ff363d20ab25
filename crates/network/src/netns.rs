//! Network namespaces kept alive by bind mounts, `<run>/netns/<uid>`.
//!
//! A namespace is entered only by threads made for that purpose: an async runtime's threads never change theirs.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::netlink::Socket;
use crate::rtnl;

const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A fresh namespace: what it is mounted on, a descriptor of it, and a route socket inside it.
pub struct Namespace {
    pub fd: OwnedFd,
    pub route: Socket,
}

/// Settings that pods expect inside: unprivileged processes may bind any port and send pings.
const INSIDE: [(&str, &str); 2] = [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Makes a namespace and mounts it on `path`, which must not be a mount yet.
pub fn create(path: &Path) -> io::Result<Namespace> {
    let path = path.to_path_buf();
    on_thread(move || {
        // SAFETY: unsharing the network namespace of a thread that ends right after affects nobody else.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for (name, value) in INSIDE {
            crate::sysctl::wish(name, value);
        }
        File::create(&path)?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)?;
        let fd = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        let route = rtnl::open().map_err(io::Error::other)?;
        Ok(Namespace { fd, route })
    })
}

/// Runs something inside a namespace, on a thread of its own.
pub fn inside<T: Send + 'static>(path: &Path, f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_thread(move || {
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(rustix::thread::LinkNameSpaceType::Network))?;
        Ok(f())
    })
}

fn on_thread<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".into()).spawn(f)?;
    thread.join().map_err(|_| io::Error::other("the thread that enters a network namespace has panicked"))?
}

pub fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

/// Takes the mount and its file away; absent is fine. The namespace lives on while processes are in it.
pub fn remove(path: &Path) -> io::Result<()> {
    while is_namespace(path) {
        rustix::mount::unmount(path, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The directory for the mounts: private, so that they are not copied into every container's mount namespace.
pub fn prepare(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if !is_mount_point(dir) {
        rustix::mount::mount_bind(dir, dir)?;
    }
    rustix::mount::mount_change(dir, MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Undoes [`prepare`], with all namespaces mounted below.
pub fn retire(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        remove(&entry.path())?;
    }
    while is_mount_point(dir) {
        rustix::mount::unmount(dir, UnmountFlags::DETACH)?;
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn is_mount_point(dir: &Path) -> bool {
    let Ok(dir) = dir.canonicalize() else { return false };
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    // The fifth field is the mount point, with blanks written as \040.
    mounts.lines().filter_map(|l| l.split(' ').nth(4)).any(|at| at.replace("\\040", " ") == dir.to_string_lossy())
}
