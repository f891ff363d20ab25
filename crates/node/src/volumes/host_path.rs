//! hostPath: what must be there, and what is made when it is not.
//!
//! Source: `HostPathVolumeSource.type` of `core/v1`.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

pub(super) fn check(path: &Path, kind: &str) -> Result<(), String> {
    if !path.is_absolute() || path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(format!("hostPath {:?} must be absolute and without '..'", path.display()));
    }
    let found = std::fs::metadata(path).ok();
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            std::fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
            set_mode(path, 0o755)
        }
        "FileOrCreate" if found.is_none() => {
            let made = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
            made.map_err(|e| format!("{}: {e}", path.display()))?;
            set_mode(path, 0o644)
        }
        "Directory" | "DirectoryOrCreate" => {
            if found.is_some_and(|m| m.is_dir()) {
                Ok(())
            } else {
                failed("a directory")
            }
        }
        "File" | "FileOrCreate" => {
            if found.is_some_and(|m| m.is_file()) {
                Ok(())
            } else {
                failed("a file")
            }
        }
        "Socket" => {
            if found.is_some_and(|m| m.file_type().is_socket()) {
                Ok(())
            } else {
                failed("a socket file")
            }
        }
        "CharDevice" => {
            if found.is_some_and(|m| m.file_type().is_char_device()) {
                Ok(())
            } else {
                failed("a character device")
            }
        }
        "BlockDevice" => {
            if found.is_some_and(|m| m.file_type().is_block_device()) {
                Ok(())
            } else {
                failed("a block device")
            }
        }
        other => Err(format!("unknown hostPath type {other:?}")),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        for (path, kind, ok) in [
            (at("file"), "", true),
            (at("none"), "", true),
            (at("file"), "File", true),
            (at("file"), "Directory", false),
            (at("none"), "Directory", false),
            (at("made"), "DirectoryOrCreate", true),
            (at("made.txt"), "FileOrCreate", true),
            (at("file"), "DirectoryOrCreate", false),
            (at("file"), "Socket", false),
            ("/dev/null".into(), "CharDevice", true),
            ("relative".into(), "", false),
            ("/tmp/../etc".into(), "", false),
        ] {
            assert_eq!(check(&path, kind).is_ok(), ok, "{} {kind}", path.display());
        }
        assert!(at("made").is_dir() && at("made.txt").is_file());
        assert!(check(&at("file"), "Directory").unwrap_err().starts_with("hostPath type check failed:"));
    }
}
