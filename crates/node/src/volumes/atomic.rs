//! Files of a projected volume, changed all at once: a reader sees the old set or the new, never a mixture.
//!
//! The layout is Kubernetes': the files are in a hidden directory of their own, `..data` is a link to it, and each name at
//! the top is a link into `..data`. An update writes a new hidden directory and renames a new `..data` over the old.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// A file's content and mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who may read it, where that is not root (a token of a pod that runs as one user).
    pub uid: Option<u32>,
}

/// By path below the volume: `app.properties`, `certs/ca.crt`.
pub type Files = BTreeMap<String, File>;

const DATA: &str = "..data";

/// Makes the volume hold exactly `files`. False when it did already.
pub fn write(target: &Path, files: &Files, fs_group: Option<u32>) -> Result<bool, String> {
    if let Some(bad) = files.keys().find(|p| !is_plain(p)) {
        return Err(format!("path {bad:?} is not a plain relative path"));
    }
    // The owner group reads what the owner reads.
    let grouped = |f: &File| File { mode: if fs_group.is_some() { f.mode | ((f.mode & 0o400) >> 3) } else { f.mode }, ..f.clone() };
    let files: Files = files.iter().map(|(path, f)| (path.clone(), grouped(f))).collect();
    replace(target, &files, fs_group).map_err(|e| format!("{}: {e}", target.display()))
}

fn is_plain(path: &str) -> bool {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    !parts.is_empty() && !path.starts_with("..") && parts.iter().all(|c| matches!(c, Component::Normal(_)))
}

fn replace(target: &Path, files: &Files, fs_group: Option<u32>) -> io::Result<bool> {
    std::fs::create_dir_all(target)?;
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o755))?;
    let old = std::fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && read(&target.join(old)).is_ok_and(|had| &had == files)
    {
        return Ok(false);
    }
    let fresh = fresh_name(target, old.as_deref());
    let directory = target.join(&fresh);
    fill(&directory, files, fs_group)?;
    let staged = target.join("..data_tmp");
    let _ = std::fs::remove_file(&staged);
    std::os::unix::fs::symlink(&fresh, &staged)?;
    std::fs::rename(&staged, target.join(DATA))?;
    links(target, files)?;
    sweep(target, &fresh)?;
    Ok(true)
}

/// `..1`, `..2`: hidden, and not the one in use.
fn fresh_name(target: &Path, old: Option<&Path>) -> String {
    let mut n: u64 = old.and_then(|o| o.to_str()).and_then(|o| o.trim_start_matches('.').parse().ok()).unwrap_or(0);
    loop {
        n += 1;
        let name = format!("..{n}");
        if std::fs::symlink_metadata(target.join(&name)).is_err() {
            return name;
        }
    }
}

fn fill(directory: &Path, files: &Files, fs_group: Option<u32>) -> io::Result<()> {
    std::fs::create_dir(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    for (name, file) in files {
        let path = directory.join(name);
        let mut at = directory.to_path_buf();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            at.push(part);
            std::fs::create_dir_all(&at)?;
            std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755))?;
        }
        std::fs::write(&path, &file.data)?;
        if fs_group.is_some() || file.uid.is_some() {
            std::os::unix::fs::chown(&path, file.uid, fs_group)?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// The names at the top that should be there.
fn tops(files: &Files) -> BTreeSet<String> {
    files.keys().filter_map(|p| p.split('/').find(|part| !part.is_empty())).map(String::from).collect()
}

fn links(target: &Path, files: &Files) -> io::Result<()> {
    for name in tops(files) {
        let (link, wanted) = (target.join(&name), PathBuf::from(DATA).join(&name));
        if std::fs::read_link(&link).is_ok_and(|to| to == wanted) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&wanted, &link)?;
    }
    Ok(())
}

/// What earlier sets left: names that are no longer in it, and hidden directories.
fn sweep(target: &Path, fresh: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == fresh {
            continue;
        }
        let path = entry.path();
        if name.starts_with("..") {
            let removed = if entry.file_type()?.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed?;
        } else if std::fs::metadata(&path).is_err() {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn read(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(directory.join(&at))? {
            let entry = entry?;
            let path = at.join(entry.file_name());
            let meta = entry.metadata()?;
            if meta.is_dir() {
                pending.push(path);
                continue;
            }
            use std::os::unix::fs::MetadataExt;
            let uid = (meta.uid() != 0).then(|| meta.uid());
            let file = File { data: std::fs::read(entry.path())?, mode: meta.mode() & 0o7777, uid };
            files.insert(path.to_string_lossy().into_owned(), file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(n, d)| (n.to_string(), File { data: d.as_bytes().to_vec(), mode: 0o644, uid: None })).collect()
    }

    #[test]
    fn a_set_is_replaced_at_once_and_nothing_old_stays() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        assert!(write(&volume, &files(&[("a", "1"), ("sub/b", "2"), ("sub/c", "3")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        assert_eq!(std::fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert!(!write(&volume, &files(&[("a", "1"), ("sub/b", "2"), ("sub/c", "3")]), None).unwrap());
        // A reader that holds the directory of the old set goes on reading it.
        assert!(write(&volume, &files(&[("a", "9"), ("d", "4")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "9");
        let mut names: Vec<String> = std::fs::read_dir(&volume).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "a", "d"]);
        assert!(write(&volume, &Files::new(), None).unwrap());
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 2);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/etc/x", "a/../../x", "", "..data"] {
            assert!(write(dir.path(), &files(&[(bad, "x")]), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = File { data: b"k".to_vec(), mode: 0o400, uid: None };
        write(dir.path(), &[("key".to_string(), file)].into(), None).unwrap();
        let mode = std::fs::metadata(dir.path().join("key")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o400);
    }
}
