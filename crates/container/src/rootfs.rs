//! A container's file system, made by its first process in its own mount namespace: overlay, the kernel's file systems,
//! devices, volumes; then everything else of the machine is out of sight. Nothing is ever mounted where the machine sees
//! it, so nothing has to be unmounted: the namespace takes it along.
//!
//! All places inside the root are found through `target`, all mounts are made by descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use driver::{Container, Root};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::cgroup::Group;
use crate::limits;
use crate::sys::{self, Doing, Failure, Step};
use crate::target::{self, Make};

/// Hidden: a directory becomes empty, a file reads as empty (runtime-spec's defaults as containerd has them).
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name, major, minor.
const NODES: &[(&str, u32, u32)] = &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const HARMLESS: MountAttrFlags = NOSUID.union(NODEV).union(NOEXEC);

/// What is made of it outside the container's own description.
pub struct Place<'a> {
    /// `<roots>/<container>-<attempt>`: `upper`, `work`, `root` and one link a layer.
    pub dir: &'a Path,
    /// The pod's `/dev/shm`.
    pub shm: &'a Path,
    pub group: &'a Group<'a>,
    /// The machine's mount namespace, for mounts that propagate back to it.
    pub host: BorrowedFd<'a>,
}

/// Makes the directories of a container. Layers are reached through short links, so that any number of them fits in the
/// one page of options that mount(2) takes, and no character of their paths can mean anything there.
pub fn prepare(dir: &Path, container: &Container) -> Step {
    let Root::Layers(layers) = &container.root else {
        return Err(Failure::invalid("a container needs the layers of an image"));
    };
    if layers.is_empty() {
        return Err(Failure::invalid("the image has no layers"));
    }
    if let Some(missing) = layers.iter().find(|l| !l.is_dir()) {
        return Err(Failure::failed(format!("image layer {} is not there", missing.display())));
    }
    for name in ["upper", "work", "root"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).doing(|| format!("creating {}", path.display()))?;
    }
    for (i, layer) in stack(layers).iter().enumerate() {
        let link = dir.join(i.to_string());
        match std::os::unix::fs::symlink(layer, &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).doing(|| format!("creating {}", link.display())),
            _ => {}
        }
    }
    Ok(())
}

/// Uppermost first; overlayfs refuses a directory twice, and the lower one of two adds nothing.
fn stack(layers: &[PathBuf]) -> Vec<&PathBuf> {
    let mut stack: Vec<&PathBuf> = Vec::new();
    for layer in layers.iter().rev() {
        if !stack.contains(&layer) {
            stack.push(layer);
        }
    }
    stack
}

struct Builder<'a> {
    root: OwnedFd,
    container: &'a Container,
}

impl Builder<'_> {
    fn at(&self, path: &Path, make: Make) -> Step<OwnedFd> {
        target::open(&self.root, path, make).doing(|| format!("mount target {}", path.display()))
    }

    fn put(&self, mount: &OwnedFd, place: &OwnedFd, path: &Path) -> Step {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", place, "", flags).doing(|| format!("mounting {}", path.display()))
    }

    /// Mounts a file system of the kernel's; the mount's root comes back.
    fn fs(&self, kind: &str, path: &str, options: &[(&str, &str)], attrs: MountAttrFlags) -> Step<OwnedFd> {
        let mount = new_fs(kind, options, attrs).doing(|| format!("mounting {kind} at {path}"))?;
        self.put(&mount, &self.at(Path::new(path), Make::Dir)?, Path::new(path))?;
        Ok(mount)
    }

    fn kernel_file_systems(&self, place: &Place<'_>) -> Step {
        let privileged = self.container.security.privileged;
        self.fs("proc", "/proc", &[], HARMLESS)?;
        let sys_attrs = if privileged { HARMLESS } else { HARMLESS | RDONLY };
        self.fs("sysfs", "/sys", &[], sys_attrs)?;
        self.cgroups(place.group, if privileged { HARMLESS } else { HARMLESS | RDONLY })?;
        self.fs("mqueue", "/dev/mqueue", &[], HARMLESS)?;
        let shm = tree(CWD, place.shm, false).doing(|| format!("opening {}", place.shm.display()))?;
        self.put(&shm, &self.at(Path::new("/dev/shm"), Make::Dir)?, Path::new("/dev/shm"))
    }

    /// The container's own groups: one mount on version 2, a directory a controller on version 1.
    fn cgroups(&self, group: &Group<'_>, attrs: MountAttrFlags) -> Step {
        let views = group.views();
        let base = match views.iter().any(|(name, ..)| !name.is_empty()) {
            true => Some(self.fs("tmpfs", "/sys/fs/cgroup", &[("mode", "755")], HARMLESS)?),
            false => None,
        };
        for (name, dir, controllers) in views {
            if let Some(base) = &base {
                rustix::fs::mkdirat(base, &name, Mode::from_raw_mode(0o755)).doing(|| format!("/sys/fs/cgroup/{name}"))?;
                for alias in controllers.iter().filter(|c| **c != name) {
                    rustix::fs::symlinkat(&name, base, *alias).doing(|| format!("/sys/fs/cgroup/{alias}"))?;
                }
            }
            let path = Path::new("/sys/fs/cgroup").join(name);
            let mount = tree(CWD, &dir, false).doing(|| format!("opening {}", dir.display()))?;
            sys::mount_setattr(&mount, false, u64::from(attrs.bits()), 0).doing(|| format!("mounting {}", path.display()))?;
            self.put(&mount, &self.at(&path, Make::Dir)?, &path)?;
        }
        base.map_or(Ok(()), |b| sys::mount_setattr(&b, false, u64::from(attrs.bits()), 0).doing(|| "mounting /sys/fs/cgroup".to_string()))
    }

    fn mask(&self) -> Step {
        let mut empty: Option<OwnedFd> = None;
        let null = self.at(Path::new("/dev/null"), Make::Nothing)?;
        for path in MASKED.iter().map(Path::new) {
            let Ok(place) = target::open(&self.root, path, Make::Nothing) else { continue };
            let mount = match (target::is_dir(&place).doing(|| path.display().to_string())?, &empty) {
                (false, _) => tree(&null, Path::new(""), false),
                (true, Some(first)) => tree(first, Path::new(""), false),
                (true, None) => new_fs("tmpfs", &[("mode", "555"), ("size", "4k")], HARMLESS | RDONLY),
            };
            let mount = mount.doing(|| format!("masking {}", path.display()))?;
            self.put(&mount, &place, path)?;
            if empty.is_none() && target::is_dir(&mount).unwrap_or_default() {
                empty = Some(mount);
            }
        }
        for path in READ_ONLY.iter().map(Path::new) {
            let Ok(place) = target::open(&self.root, path, Make::Nothing) else { continue };
            let mount = tree(&place, Path::new(""), true).doing(|| format!("mounting {} read-only", path.display()))?;
            sys::mount_setattr(&mount, true, sys::ATTR_RDONLY, 0).doing(|| format!("mounting {} read-only", path.display()))?;
            self.put(&mount, &place, path)?;
        }
        Ok(())
    }

    fn devices(&self, dev: &OwnedFd) -> Step {
        let node = |name: &str, kind: FileType, mode: u32, rdev: u64| match rustix::fs::mknodat(dev, name, kind, mode.into(), rdev) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => other.doing(|| format!("creating /dev/{name}")),
        };
        for (name, major, minor) in NODES {
            node(name, FileType::CharacterDevice, 0o666, rustix::fs::makedev(*major, *minor))?;
        }
        for (name, text) in LINKS {
            rustix::fs::symlinkat(*text, dev, *name).doing(|| format!("creating /dev/{name}"))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).doing(|| format!("creating /dev/{name}"))?;
        }
        if self.container.security.privileged {
            for (name, meta) in host_devices(Path::new("/dev")) {
                if let Some(parent) = name.parent().filter(|p| !p.as_os_str().is_empty()) {
                    target::open(dev, parent, Make::Dir).doing(|| format!("creating /dev/{}", parent.display()))?;
                }
                let kind = FileType::from_raw_mode(meta.mode());
                node(&name.to_string_lossy(), kind, meta.mode() & 0o777, meta.rdev())?;
            }
        }
        Ok(())
    }

    fn volume(&self, mount: &driver::Mount, host: BorrowedFd<'_>) -> Step {
        let what = || format!("mounting {} at {}", mount.source.display(), mount.target.display());
        let propagation = match mount.propagation.as_deref().unwrap_or("rprivate") {
            "rprivate" | "private" => libc::MS_PRIVATE,
            "rslave" | "slave" => libc::MS_SLAVE,
            "rshared" | "shared" => libc::MS_SHARED,
            other => return Err(Failure::invalid(format!("mount propagation {other:?} is not known"))),
        };
        let source = match propagation == libc::MS_SHARED {
            // Only what is taken from the machine's own namespace shares its mounts.
            true => in_namespace(host, || tree(CWD, &mount.source, true)),
            false => tree(CWD, &mount.source, true),
        };
        let source = source.doing(what)?;
        let nodev = if self.container.security.privileged { 0 } else { sys::ATTR_NODEV };
        let read_only = if mount.read_only { sys::ATTR_RDONLY } else { 0 };
        sys::mount_setattr(&source, true, nodev | read_only, propagation).doing(what)?;
        let make = if target::is_dir(&source).doing(what)? { Make::Dir } else { Make::File };
        let place = self.at(&mount.target, make)?;
        if target::is_in_proc(&place) {
            return Err(Failure::invalid(format!("{} is in /proc, where nothing can be mounted", mount.target.display())));
        }
        self.put(&source, &place, &mount.target)
    }
}

fn new_fs(kind: &str, options: &[(&str, &str)], attrs: MountAttrFlags) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value.is_empty() {
            true => rustix::mount::fsconfig_set_flag(&fs, *key)?,
            false => rustix::mount::fsconfig_set_string(&fs, *key, *value)?,
        }
    }
    rustix::mount::fsconfig_create(&fs)?;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?)
}

/// A copy of a mounted tree, not yet mounted anywhere.
fn tree(at: impl AsFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(at.as_fd(), path, flags)?)
}

/// Does something in another mount namespace and comes back.
fn in_namespace<T>(other: BorrowedFd<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = fs::File::open("/proc/self/ns/mnt")?;
    sys::setns(other, libc::CLONE_NEWNS)?;
    let result = f();
    sys::setns(&own, libc::CLONE_NEWNS)?;
    result
}

/// Device nodes of the machine below `/dev`, but what a container has of its own.
fn host_devices(dir: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let own = ["pts", "shm", "mqueue", "console", "fd", "ptmx"].iter().any(|n| path == Path::new("/dev").join(n));
        match FileType::from_raw_mode(meta.mode()) {
            _ if own => {}
            FileType::Directory => found.extend(host_devices(&path)),
            FileType::CharacterDevice | FileType::BlockDevice => {
                found.extend(path.strip_prefix("/dev").map(|p| (p.to_path_buf(), meta)));
            }
            _ => {}
        }
    }
    found
}

/// Builds the root and moves into it. With `tty`, the master of a new terminal of the container's own comes back.
pub fn enter(container: &Container, place: &Place<'_>) -> Step<Option<OwnedFd>> {
    let security = &container.security;
    let Root::Layers(layers) = &container.root else { return Err(Failure::invalid("a container needs the layers of an image")) };
    std::env::set_current_dir(place.dir).doing(|| format!("entering {}", place.dir.display()))?;
    let lower = (0..stack(layers).len()).map(|i| i.to_string()).collect::<Vec<_>>().join(":");
    // A container's writable layer dies with it, a machine's crash included: there is nothing to sync it for.
    let index = if Path::new("/sys/module/overlay/parameters/index").exists() { ",index=off" } else { "" };
    let options = format!("lowerdir={lower},upperdir=upper,workdir=work,volatile{index}");
    let nodev = if security.privileged { 0 } else { libc::MS_NODEV };
    sys::mount("overlay", Path::new("root"), "overlay", nodev, &options).doing(|| "mounting the overlay of image layers".to_string())?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let root = rustix::fs::open("root", flags, Mode::empty()).doing(|| "opening the root directory".to_string())?;

    let builder = Builder { root, container };
    let dev = builder.fs("tmpfs", "/dev", &[("mode", "755"), ("size", "65536k")], NOSUID)?;
    builder.devices(&dev)?;
    builder.kernel_file_systems(place)?;
    let pts_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let pts = builder.fs("devpts", "/dev/pts", &pts_options, NOSUID | NOEXEC)?;
    if !security.privileged && !security.unmasked_proc {
        builder.mask()?;
    }
    let master = if container.tty { Some(console(&builder, &pts)?) } else { None };
    let mut mounts: Vec<&driver::Mount> = container.mounts.iter().collect();
    mounts.sort_by_key(|m| m.target.components().count());
    mounts.into_iter().try_for_each(|m| builder.volume(m, place.host))?;
    if security.read_only_root {
        sys::mount_setattr(&builder.root, false, sys::ATTR_RDONLY, 0).doing(|| "making the root read-only".to_string())?;
    }
    pivot(&builder.root)?;
    Ok(master)
}

/// A terminal of the container's own, seen inside as `/dev/console` too.
fn console(builder: &Builder<'_>, pts: &OwnedFd) -> Step<OwnedFd> {
    let what = || "creating the terminal".to_string();
    let master = open_ptmx(pts).doing(what)?;
    let number = sys::pty_number(&master).doing(what)?;
    let peer = tree(pts, Path::new(&number.to_string()), false).doing(what)?;
    let path = Path::new("/dev/console");
    builder.put(&peer, &builder.at(path, Make::File)?, path)?;
    Ok(master)
}

/// A new terminal of the file system whose root this is.
pub fn open_ptmx(pts: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(pts, "ptmx", flags, Mode::empty())?)
}

/// The root becomes `/`, and what was there before is gone.
pub fn pivot(root: &OwnedFd) -> Step {
    let what = || "changing the root directory".to_string();
    rustix::process::fchdir(root).doing(what)?;
    rustix::process::pivot_root(".", ".").doing(what)?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).doing(what)?;
    rustix::process::chdir("/").doing(what)
}

/// The pod's `/dev/shm`, in the shim's mount namespace; the machine's own for `hostIPC`.
pub fn shm(dir: &Path, host_ipc: bool) -> Step<PathBuf> {
    if host_ipc {
        return Ok(PathBuf::from("/dev/shm"));
    }
    let path = dir.join("shm");
    fs::create_dir_all(&path).doing(|| format!("creating {}", path.display()))?;
    let mount = new_fs("tmpfs", &[("mode", "1777"), ("size", limits::SHM_SIZE)], HARMLESS).doing(|| "creating /dev/shm".to_string())?;
    rustix::mount::move_mount(&mount, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| format!("mounting {}", path.display()))?;
    Ok(path)
}

/// An empty, read-only root: for a process that only has to be there.
pub fn enter_empty(dir: &Path) -> Step {
    let what = || "an empty root".to_string();
    let mount = new_fs("tmpfs", &[("mode", "555"), ("size", "4k")], HARMLESS | RDONLY).doing(what)?;
    rustix::mount::move_mount(&mount, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(what)?;
    pivot(&mount)
}

/// Looks a user's home directory up in the root's `/etc/passwd`.
pub fn home(uid: u32) -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|l| l.get(2).and_then(|u| u.parse().ok()) == Some(uid));
    line.and_then(|l| l.get(5).map(|h| h.to_string())).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".to_string())
}

/// What a descriptor is, for `fchown` of pipes and terminals only.
pub fn is_stream(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).is_ok_and(|s| {
        let kind = FileType::from_raw_mode(s.st_mode);
        kind == FileType::Fifo || kind == FileType::CharacterDevice && s.st_rdev >> 8 & 0xfff == 136
    })
}
