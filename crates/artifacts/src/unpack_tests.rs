//! Layers as registries send them, and as an enemy would.

use super::*;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

/// A file of the archive: name, kind, link or content.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory { 0o750 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000);
        // Names are written raw: the builder would refuse the hostile ones.
        let raw = &mut header.as_old_mut().name;
        raw[..name.len()].copy_from_slice(name.as_bytes());
        match kind {
            EntryType::Symlink | EntryType::Link => {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            }
            _ => {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

use EntryType::{Directory as D, Link as H, Regular as F, Symlink as S};

/// A world with a victim beside the layers; `check` says what may never change.
struct World {
    dir: tempfile::TempDir,
    layers: Vec<std::path::PathBuf>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("victim")).unwrap();
        std::fs::write(dir.path().join("victim/file"), "precious").unwrap();
        Self { dir, layers: Vec::new() }
    }

    fn layer(&mut self, entries: &[(&str, EntryType, &str)]) -> Result<std::path::PathBuf> {
        let target = self.dir.path().join(format!("layer{}", self.layers.len()));
        std::fs::create_dir(&target).unwrap();
        let lowers: Vec<&Path> = self.layers.iter().rev().map(|p| p.as_path()).collect();
        let bytes = archive(entries);
        let result = unpack(&bytes[..], &target, &lowers);
        assert_eq!(std::fs::read_to_string(self.dir.path().join("victim/file")).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(self.dir.path().join("victim")).unwrap().count(), 1);
        assert_eq!(result?, Digest::of(&bytes));
        self.layers.push(target.clone());
        Ok(target)
    }
}

fn whiteout(path: std::path::PathBuf) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[test]
fn files_keep_owner_mode_time_and_content() {
    let mut w = World::new();
    let l = w.layer(&[("a", D, ""), ("a/f", F, "text"), ("a/g", H, "a/f"), ("s", S, "a/f")]).unwrap();
    let meta = std::fs::metadata(l.join("a/f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777, meta.mtime()), (7, 8, 0o640, 1_000_000));
    assert_eq!(meta.nlink(), 2);
    assert_eq!(std::fs::read_to_string(l.join("s")).unwrap(), "text");
    assert_eq!(std::fs::metadata(l.join("a")).unwrap().mtime(), 1_000_000);
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    let mut w = World::new();
    w.layer(&[("d", D, ""), ("d/x", F, "1"), ("d/y", F, "1"), ("e", D, ""), ("e/z", F, "1")]).unwrap();
    let l = w.layer(&[("d/.wh.x", F, ""), ("e/.wh..wh..opq", F, ""), ("e/new", F, "2")]).unwrap();
    assert!(whiteout(l.join("d/x")));
    assert!(is_opaque(&sys::open(l.join("e"), DIR, Mode::empty()).unwrap()));
    assert!(l.join("e/new").exists());
    // The twin of a lower directory keeps the lower one's attributes.
    assert_eq!(std::fs::metadata(l.join("d")).unwrap().permissions().mode() & 0o7777, 0o750);
    // A directory that comes back after its whiteout shows nothing of the old one.
    let l = w.layer(&[(".wh.d", F, ""), ("d", D, ""), ("d/n", F, "3")]).unwrap();
    assert!(is_opaque(&sys::open(l.join("d"), DIR, Mode::empty()).unwrap()));
}

#[test]
fn a_lower_link_leads_to_the_right_directory() {
    let mut w = World::new();
    w.layer(&[("usr", D, ""), ("usr/lib", D, ""), ("lib", S, "usr/lib")]).unwrap();
    let l = w.layer(&[("lib/so", F, "new")]).unwrap();
    assert_eq!(std::fs::read_to_string(l.join("usr/lib/so")).unwrap(), "new");
    assert!(!l.join("lib").exists());
    let l = w.layer(&[("lib/hard", H, "lib/so")]).unwrap();
    assert_eq!(std::fs::read_to_string(l.join("usr/lib/hard")).unwrap(), "new");
}

#[test]
fn hostile_layers_stay_inside() {
    let mut w = World::new();
    let victim = w.dir.path().join("victim").display().to_string();
    let file = format!("{victim}/file");
    let up = "../victim";
    let cases: Vec<Vec<(&str, EntryType, &str)>> = vec![
        vec![("../victim/file", F, "evil")],
        vec![("a/../../victim/file", F, "evil")],
        vec![("x", S, &victim), ("x/file", F, "evil")],
        vec![("x", S, up), ("x/file", F, "evil")],
        vec![("x", S, &victim), ("x/.wh.file", F, "")],
        vec![("x", S, up), ("x/.wh..wh..opq", F, "")],
        vec![(".wh...", F, "")],
        vec![(".wh..", F, "")],
        vec![(".wh.", F, "")],
        vec![("h", H, &file), ("h", F, "evil")],
        vec![("h", H, "../victim/file"), ("h", F, "evil")],
        vec![("x", S, "x"), ("x/file", F, "evil")],
        vec![("f", F, "a file"), ("f/below", F, "evil")],
        vec![("x", S, &victim), ("x", D, ""), ("x/file", F, "evil")],
        vec![("/abs/file", F, "stays inside")],
    ];
    for (n, case) in cases.iter().enumerate() {
        // Refused or contained; `layer` checks the victim either way.
        let result = w.layer(case);
        if let Err(e) = &result {
            assert!(matches!(e, Error::Invalid(_)), "case {n}: {e}");
            std::fs::remove_dir_all(w.dir.path().join(format!("layer{}", w.layers.len()))).unwrap();
        }
    }
}

#[test]
fn attributes_that_speak_to_overlayfs_are_not_taken() {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..]), ("SCHILY.xattr.user.kept", &b"1"[..])])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::Directory);
    header.set_path("d").unwrap();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, io::empty()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    unpack(&bytes[..], dir.path(), &[]).unwrap();
    let fd = sys::open(dir.path().join("d"), DIR, Mode::empty()).unwrap();
    let mut value = [0u8; 16];
    assert!(sys::fgetxattr(&fd, "trusted.overlay.redirect", &mut value[..]).is_err());
    assert!(matches!(sys::fgetxattr(&fd, "user.kept", &mut value[..]), Ok(1) | Err(rustix::io::Errno::NOTSUP)));
}

#[test]
fn compressed_streams_are_told_by_their_magic_and_truncation_is_an_error() {
    use std::io::Write;
    let plain = archive(&[("a", F, &"x".repeat(100_000))]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let gz = gz.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(unpack(&gz[..], dir.path(), &[]).unwrap(), Digest::of(&plain));
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(&gz[..gz.len() / 2], dir.path(), &[]).is_err());
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(&b"this is no archive at all, but more than four bytes"[..], dir.path(), &[]).is_err());
}
