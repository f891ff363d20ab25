//! A path inside a volume, opened so that nobody who writes to the volume can lead out of it.
//!
//! The path is resolved by the kernel (`openat2`, beneath the volume only) and the open file itself is bind-mounted to a
//! place that only the node can change: between looking and mounting nothing can be swapped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// An open path below `base`; directories that are missing are made with the mode of the volume.
pub(super) fn open(base: &Path, sub: &str) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::openat2(&root, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
        Err(rustix::io::Errno::NOENT) => make(&root, sub),
        opened => Ok(opened?),
    }
}

fn make(root: &OwnedFd, sub: &str) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode & 0o7777);
    let mut at = rustix::fs::openat(root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut walked = PathBuf::new();
    for part in Path::new(sub).components() {
        walked.push(part);
        match rustix::fs::mkdirat(&at, part.as_os_str(), mode) {
            // The umask is the node's, the mode is the volume's.
            Ok(()) => {
                let made =
                    rustix::fs::openat2(root, &walked, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), BENEATH)?;
                rustix::fs::fchmod(&made, mode)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        at = rustix::fs::openat2(root, &walked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH)?;
    }
    Ok(at)
}

/// Bind-mounts an open path to `place`, which is made as a file or a directory to fit. What was mounted there goes.
pub(super) fn bind(opened: &OwnedFd, place: &Path) -> io::Result<()> {
    let directory = FileType::from_raw_mode(rustix::fs::fstat(opened)?.st_mode).is_dir();
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    while rustix::mount::unmount(place, flags).is_ok() {}
    // Never recursively: what is still mounted here is the volume.
    match std::fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(place)?,
        Ok(_) => std::fs::remove_file(place)?,
        Err(_) => {}
    }
    if directory {
        std::fs::create_dir_all(place)?;
    } else {
        place.parent().map(std::fs::create_dir_all).transpose()?;
        std::fs::write(place, "")?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd());
    rustix::mount::mount_bind_recursive(source.as_str(), place).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn links_inside_are_followed_and_links_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("volume");
        std::fs::create_dir_all(base.join("..data")).unwrap();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(base.join("..data/key"), "x").unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        symlink("..data/key", base.join("key")).unwrap();
        symlink("/etc", base.join("abs")).unwrap();
        symlink("../secret", base.join("up")).unwrap();
        symlink("/proc/self/root", base.join("magic")).unwrap();
        assert!(open(&base, "key").is_ok());
        for bad in ["abs", "abs/passwd", "up", "magic", "magic/etc", "abs/new/dir"] {
            assert!(open(&base, bad).is_err(), "{bad}");
        }
        open(&base, "a/b/c").unwrap();
        assert_eq!(std::fs::metadata(base.join("a/b/c")).unwrap().mode() & 0o777, 0o777);
    }
}
