//! Users and groups of an image, read from its layers without following any link out of them.
//!
//! The layers are seen as the container will see them: upper ones first, whiteouts (character devices 0/0) hide, opaque
//! directories hide everything below.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::limits::{LINKS_MAX, PASSWD_BYTES_MAX};

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
}

/// `/etc/passwd` and `/etc/group` of an image.
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// `layers` lowest first.
    pub fn read(layers: &[PathBuf]) -> Self {
        Self { passwd: file(layers, "etc/passwd"), group: file(layers, "etc/group") }
    }

    /// `user`, `uid`, `user:group`, `uid:gid` or empty, as an image's configuration has it.
    pub fn resolve(&self, text: &str) -> Result<User, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        let (uid, primary, name) = match user.parse::<u32>() {
            Ok(uid) => self.by_uid(uid).map_or((uid, 0, None), |(name, gid)| (uid, gid, Some(name))),
            Err(_) if user.is_empty() => (0, 0, Some("root")),
            Err(_) => match self.by_name(user) {
                Some((uid, gid)) => (uid, gid, Some(user)),
                None => return Err(format!("unable to find user {user}: no matching entries in passwd file")),
            },
        };
        let gid = match group {
            None | Some("") => primary,
            Some(group) => match group.parse() {
                Ok(gid) => gid,
                Err(_) => self.group(group).ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))?,
            },
        };
        let additional = name.map(|n| self.groups_of(n)).unwrap_or_default().into_iter().filter(|g| *g != gid).collect();
        Ok(User { uid, gid, additional })
    }

    fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
        text.lines().map(|l| l.trim().split(':').collect())
    }

    fn by_uid(&self, uid: u32) -> Option<(&str, u32)> {
        let found = Self::lines(&self.passwd).find(|f| f.len() > 3 && f[2].parse() == Ok(uid))?;
        Some((found[0], found[3].parse().ok()?))
    }

    fn by_name(&self, name: &str) -> Option<(u32, u32)> {
        let found = Self::lines(&self.passwd).find(|f| f.len() > 3 && f[0] == name)?;
        Some((found[2].parse().ok()?, found[3].parse().ok()?))
    }

    fn group(&self, name: &str) -> Option<u32> {
        Self::lines(&self.group).find(|f| f.len() > 2 && f[0] == name)?[2].parse().ok()
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let member = |f: &Vec<&str>| f.len() > 3 && f[3].split(',').any(|m| m == user);
        Self::lines(&self.group).filter(member).filter_map(|f| f[2].parse().ok()).collect()
    }
}

fn file(layers: &[PathBuf], path: &str) -> String {
    let Some(found) = resolve(layers, Path::new(path)) else { return String::new() };
    let regular = std::fs::symlink_metadata(&found).is_ok_and(|m| m.is_file());
    let mut text = Vec::new();
    if regular && let Ok(file) = std::fs::File::open(&found) {
        let _ = file.take(PASSWD_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The file of a path in the merged view, links resolved inside it. Layers do not change once they are unpacked.
fn resolve(layers: &[PathBuf], path: &Path) -> Option<PathBuf> {
    let mut pending: Vec<PathBuf> = vec![path.to_path_buf()];
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(next) = pending.pop() {
        let mut parts = next.components();
        while let Some(part) = parts.next() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    at.pop();
                    continue;
                }
                Component::RootDir => {
                    at = PathBuf::new();
                    continue;
                }
                _ => continue,
            };
            let real = entry(layers, &at.join(name))?;
            if real.is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    return None;
                }
                pending.push(parts.as_path().to_path_buf());
                pending.push(std::fs::read_link(&real).ok()?);
                break;
            }
            at.push(name);
        }
    }
    entry(layers, &at)
}

/// The topmost entry of a path whose parents are no links.
fn entry(layers: &[PathBuf], path: &Path) -> Option<PathBuf> {
    for layer in layers.iter().rev() {
        let real = layer.join(path);
        match std::fs::symlink_metadata(&real) {
            Ok(m) if m.file_type().is_char_device() && m.rdev() == 0 => return None,
            Ok(_) => return Some(real),
            Err(_) if hides_below(layer, path) => return None,
            Err(_) => {}
        }
    }
    None
}

/// A parent in this layer is opaque, a whiteout, or not a directory.
fn hides_below(layer: &Path, path: &Path) -> bool {
    path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).any(|parent| {
        let real = layer.join(parent);
        let Ok(meta) = std::fs::symlink_metadata(&real) else { return false };
        let mut value = [0u8; 1];
        let opaque = |name: &str, value: &mut [u8; 1]| rustix::fs::lgetxattr(&real, name, value.as_mut_slice()).is_ok() && value[0] == b'y';
        !meta.is_dir() || opaque("trusted.overlay.opaque", &mut value) || opaque("user.overlay.opaque", &mut value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_resolved_as_the_image_says() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:102:\nextra:x:200:other,web\n".into(),
        };
        for (text, uid, gid, more) in [
            ("", 0, 0, vec![]),
            ("web", 101, 102, vec![200]),
            ("101", 101, 102, vec![200]),
            ("web:extra", 101, 200, vec![]),
            ("web:7", 101, 7, vec![200]),
            ("999", 999, 0, vec![]),
        ] {
            assert_eq!(accounts.resolve(text).unwrap(), User { uid, gid, additional: more }, "{text}");
        }
        assert_eq!(accounts.resolve("nobody").unwrap_err(), "unable to find user nobody: no matching entries in passwd file");
        assert!(accounts.resolve("web:none").is_err());
    }

    #[test]
    fn layers_are_merged_and_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        std::fs::create_dir_all(low.join("etc")).unwrap();
        std::fs::create_dir_all(high.join("etc")).unwrap();
        std::fs::write(low.join("etc/group"), "low:x:1:").unwrap();
        std::fs::write(low.join("etc/real"), "web:x:5:6::/:").unwrap();
        std::fs::write(dir.path().join("outside"), "evil:x:0:0::/:").unwrap();
        std::os::unix::fs::symlink("/etc/link", high.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../etc/real", high.join("etc/link")).unwrap();
        let layers = [low.clone(), high.clone()];
        assert_eq!(file(&layers, "etc/passwd"), "web:x:5:6::/:");
        assert_eq!(file(&layers, "etc/group"), "low:x:1:");
        std::os::unix::fs::symlink("../../../../outside", high.join("etc/shadow")).unwrap();
        std::os::unix::fs::symlink("loop", high.join("etc/loop")).unwrap();
        assert_eq!(file(&layers, "etc/shadow"), "");
        assert_eq!(file(&layers, "etc/loop"), "");
    }
}
