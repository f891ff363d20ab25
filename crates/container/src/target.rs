//! Finds, and makes where it is missing, the place of a mount inside a root directory that its owner may have filled with
//! symbolic links to anywhere: every link is followed by us, from the root we hold, one name at a time by descriptor.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Nothing,
    Dir,
    File,
}

const PROC_MAGIC: u64 = 0x9fa0;

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn push_front(pending: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => pending.push_front(name.to_os_string()),
            Component::ParentDir => pending.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// Opens `path` as a process with this root would see it. What is missing is made: directories on the way, and `make` at
/// its end. `..` never leaves the root, and no link is followed but by its text.
pub fn open(root: impl AsFd, path: &Path, make: Make) -> io::Result<OwnedFd> {
    // What is all there the kernel finds by itself, with the same rules.
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if let Ok(found) = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
        return Ok(found);
    }
    let mut pending = VecDeque::new();
    push_front(&mut pending, path);
    let mut above: Vec<OwnedFd> = vec![rustix::io::fcntl_dupfd_cloexec(root.as_fd(), 3)?];
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            above.truncate((above.len() - 1).max(1));
            continue;
        }
        let here = above.last().ok_or_else(|| os_error(libc::EINVAL))?;
        let find = || rustix::fs::openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let found = match find() {
            Err(rustix::io::Errno::NOENT) if make != Make::Nothing => {
                if make == Make::File && pending.is_empty() {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(here, &name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(here, &name, Mode::from_raw_mode(0o755))?;
                }
                find()?
            }
            other => other?,
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > limits::LINKS_MAX {
                    return Err(os_error(libc::ELOOP));
                }
                let text = OsString::from_vec(rustix::fs::readlinkat(&found, "", Vec::new())?.into_bytes());
                if Path::new(&text).is_absolute() {
                    above.truncate(1);
                }
                push_front(&mut pending, Path::new(&text));
            }
            FileType::Directory => above.push(found),
            _ if pending.is_empty() => return Ok(found),
            _ => return Err(os_error(libc::ENOTDIR)),
        }
    }
    above.pop().ok_or_else(|| os_error(libc::EINVAL))
}

/// Nothing is mounted into `/proc`: what a process does with its own files there must reach the kernel.
pub fn is_in_proc(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type as u64 == PROC_MAGIC)
}

pub fn is_dir(fd: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn real(fd: &OwnedFd) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_target_never_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = fs::canonicalize(dir.path()).unwrap().join("outside");
        let inside = outside.with_file_name("root");
        for d in [&outside, &inside, &inside.join("etc"), &inside.join("run")] {
            fs::create_dir(d).unwrap();
        }
        fs::write(outside.join("secret"), "x").unwrap();
        let link = |text: &str, at: &str| symlink(text, inside.join(at)).unwrap();
        link(outside.to_str().unwrap(), "absolute");
        link("../../../../outside", "relative");
        link("/run", "var");
        link("/etc/../../outside", "dotdot");
        link("loop", "loop");
        link("/new/place", "dangling");
        let root = fs::File::open(&inside).unwrap();
        let at = |path: &str, make| open(&root, Path::new(path), make).map(|fd| real(&fd));

        assert_eq!(at("/var/secrets/token", Make::Dir).unwrap(), inside.join("run/secrets/token"));
        assert_eq!(at("/dangling/deep", Make::File).unwrap(), inside.join("new/place/deep"));
        for path in ["/absolute/x", "/relative/x", "/dotdot/x", "/../../outside/x", "/etc/../../../outside/x"] {
            let found = at(path, Make::Dir).unwrap();
            assert!(found.starts_with(&inside), "{path} is {}", found.display());
        }
        assert_eq!(at("/loop/x", Make::Dir).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(at("/nowhere", Make::Nothing).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(at("/dangling/deep/er", Make::Dir).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        assert_eq!(at("/", Make::Dir).unwrap(), inside);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
