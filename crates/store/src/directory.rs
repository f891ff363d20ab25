//! The data directory: one process at a time, one format.
//!
//! `<data>/lock` is locked (flock) for as long as the process lives and holds its pid; `<data>/version` says who wrote the
//! directory and in which format. The kernel drops the lock with the process, so a stale file means nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// The format that this binary reads and writes.
pub const FORMAT: u32 = 1;

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::Open(format!("data directory: {}: {e}", path.display()))
}

impl DataDir {
    /// Makes the directory (mode 0700) if there is none, locks it, and checks its format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let lock = lock(path)?;
        check_version(path, env!("CARGO_PKG_VERSION"), FORMAT)?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that holds a directory's lock, if one does.
    pub fn holder(path: &Path) -> Option<u32> {
        let mut file = File::open(path.join("lock")).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => pid_in(&mut file),
            _ => None,
        }
    }
}

fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let who = pid_in(&mut file).map_or("another process".to_string(), |pid| format!("process {pid}"));
            let text = format!("data directory {} is in use by {who}: stop it, or choose another with --data-dir", dir.display());
            return Err(Error::Open(text));
        }
        Err(TryLockError::Error(e)) => return Err(failed(&path)(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed(&path))?;
    writeln!(file, "{}", std::process::id()).map_err(failed(&path))?;
    Ok(file)
}

fn check_version(dir: &Path, release: &str, format: u32) -> Result<(), Error> {
    let path = dir.join("version");
    let ours = format!("staithe {release}\nformat {format}\n");
    match std::fs::read_to_string(&path) {
        Ok(text) if text == ours => Ok(()),
        Ok(text) => {
            let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
            let (writer, found) = (field("staithe ").unwrap_or("of an unknown version"), field("format ").unwrap_or("unknown"));
            if found == format.to_string() {
                return write_whole(&path, &ours).map_err(failed(&path));
            }
            let text = format!(
                "data directory {} was written by staithe {writer} (format {found}); this binary ({release}) reads format {format}",
                dir.display()
            );
            Err(Error::Open(text))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_whole(&path, &ours).map_err(failed(&path)),
        Err(e) => Err(failed(&path)(e)),
    }
}

/// The file is the old one or the new one, never half of either.
pub(crate) fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        assert_eq!(DataDir::holder(&path), None);
        let held = DataDir::open(&path).unwrap();
        assert_eq!(DataDir::holder(&path), Some(std::process::id()));
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(held);
        assert_eq!(DataDir::holder(&path), None);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_another_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("version");
        std::fs::write(&version, "staithe 0.3.0\nformat 2\n").unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err().to_string();
        let expect = "was written by staithe 0.3.0 (format 2); this binary (0.1.0) reads format 1";
        assert!(refused.ends_with(expect), "{refused}");
        assert_eq!(std::fs::read_to_string(&version).unwrap(), "staithe 0.3.0\nformat 2\n");
        std::fs::write(&version, "staithe 0.0.9\nformat 1\n").unwrap();
        DataDir::open(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&version).unwrap(), format!("staithe {}\nformat 1\n", env!("CARGO_PKG_VERSION")));
    }
}
