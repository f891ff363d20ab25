//! Directories of volumes: made with their owner, measured, and removed whatever is in them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::limits::STORAGE_FILES_MAX;

fn io_error(path: &Path) -> impl Fn(io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}

/// A directory that every container may use; with an owner group it is inherited by what is made in it.
pub(super) fn directory(path: &Path, mode: u32, fs_group: Option<u32>) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(io_error(path))?;
    own(path, mode, fs_group)
}

fn own(path: &Path, mode: u32, fs_group: Option<u32>) -> Result<(), String> {
    let mode = if fs_group.is_some() { mode | 0o2070 } else { mode };
    if let Some(group) = fs_group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(io_error(path))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_error(path))
}

/// A tmpfs of at most `size_bytes` (0: half of the machine's memory, the kernel's default).
pub(super) fn memory(path: &Path, size_bytes: u64, fs_group: Option<u32>) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(io_error(path))?;
    if !is_mount_point(path) {
        let options = if size_bytes == 0 { "mode=0777".to_string() } else { format!("mode=0777,size={size_bytes}") };
        let options = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .map_err(|e| format!("{}: {}", path.display(), io::Error::from(e)))?;
    }
    own(path, 0o777, fs_group)
}

/// Whether another file system begins here.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path).is_some() && device(path) != device(parent))
}

/// Removes a tree: what is mounted in it is unmounted first, links are never followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.is_dir() {
        return std::fs::remove_file(path);
    }
    unmount_below(path)?;
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Deepest first. A mount that is busy is detached: its users are dead or dying.
fn unmount_below(path: &Path) -> io::Result<()> {
    for point in mounts_below(path)?.iter().rev() {
        rustix::mount::unmount(point.as_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// Mount points at or below a path, parents before what is in them.
fn mounts_below(path: &Path) -> io::Result<Vec<String>> {
    let Ok(path) = path.canonicalize() else { return Ok(Vec::new()) };
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape);
    let mut points: Vec<String> = points.filter(|p| Path::new(p).starts_with(&path)).collect();
    points.sort();
    Ok(points)
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Bytes on disk below a directory, links not followed, other file systems left out.
pub(crate) fn measure(path: &Path) -> u64 {
    let Ok(root) = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) else {
        return std::fs::symlink_metadata(path).map_or(0, |m| m.len());
    };
    let device = rustix::fs::fstat(&root).map(|s| s.st_dev).unwrap_or_default();
    let (mut total, mut files, mut pending) = (0u64, 0usize, vec![root]);
    while let Some(dir) = pending.pop() {
        if files > STORAGE_FILES_MAX {
            break;
        }
        measure_dir(&dir, device, &mut total, &mut files, &mut pending);
    }
    total
}

fn measure_dir(dir: &OwnedFd, device: u64, total: &mut u64, files: &mut usize, pending: &mut Vec<OwnedFd>) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        *files += 1;
        let Ok(stat) = rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != device {
            continue;
        }
        let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        // A file with several names counts by its part. The field's width differs between machines.
        #[allow(clippy::unnecessary_cast)]
        let names = if directory { 1 } else { (stat.st_nlink as u64).max(1) };
        *total += (stat.st_blocks as u64 * 512) / names;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if directory && let Ok(next) = rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty()) {
            pending.push(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a mount namespace of this thread's own: nothing is left on the machine, whatever happens.
    fn alone(work: impl FnOnce() + Send + 'static) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let thread = std::thread::spawn(|| {
            // SAFETY: the thread ends with this closure and shares no file system state that others rely on.
            let apart = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS) };
            apart.unwrap();
            let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            work();
        });
        thread.join().unwrap();
    }

    #[test]
    fn memory_has_its_size_and_is_unmounted_with_its_tree() {
        alone(|| {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("pod");
            let volume = tree.join("volumes/cache");
            memory(&volume, 1 << 20, Some(7)).unwrap();
            memory(&volume, 1 << 20, Some(7)).unwrap();
            assert!(std::fs::write(volume.join("big"), vec![0u8; 2 << 20]).is_err());
            use std::os::unix::fs::MetadataExt;
            let meta = std::fs::metadata(&volume).unwrap();
            assert_eq!((meta.gid(), meta.mode() & 0o7777), (7, 0o2777));
            assert_eq!(mounts_below(&tree).unwrap().len(), 1);
            assert!(measure(&tree) < 1 << 20, "another file system does not count");
            remove_tree(&tree).unwrap();
            assert!(!tree.exists() && mounts_below(dir.path()).unwrap().is_empty());
        });
    }

    #[test]
    fn a_sub_path_is_mounted_again_for_each_attempt_and_its_volume_survives() {
        alone(|| {
            use super::super::subpath;
            let dir = tempfile::tempdir().unwrap();
            let (base, place) = (dir.path().join("volume"), dir.path().join("pod/subpaths/web/0"));
            std::fs::create_dir_all(base.join("sub")).unwrap();
            std::fs::write(base.join("sub/precious"), "x").unwrap();
            for _ in 0..2 {
                subpath::bind(&subpath::open(&base, "sub").unwrap(), &place).unwrap();
                assert!(place.join("precious").exists());
            }
            let file = dir.path().join("pod/subpaths/web/1");
            subpath::bind(&subpath::open(&base, "sub/precious").unwrap(), &file).unwrap();
            subpath::bind(&subpath::open(&base, "sub/precious").unwrap(), &file).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
            remove_tree(&dir.path().join("pod")).unwrap();
            assert!(base.join("sub/precious").exists(), "what was mounted is not touched");
        });
    }

    #[test]
    fn trees_are_measured_and_removed_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        std::fs::write(tree.join("a/b/file"), vec![7u8; 100_000]).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        let measured = measure(&tree);
        assert!((100_000..200_000).contains(&measured), "{measured}");
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("precious").exists());
        remove_tree(&tree).unwrap();
    }
}
