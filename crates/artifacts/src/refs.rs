//! Names to digests: one small file a tag, written whole and synced, so that a pushed tag survives a power cut.
//!
//! `<root>/refs/<space>/<repository>/_tags/<tag>` holds a digest, `…/_manifests/<hex>` the media type of a manifest of that
//! repository. Components of repository names never begin with `_`, so nothing clashes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::blobs::write_atomic;
use crate::reference::{valid_repository, valid_tag};
use crate::{Digest, Error, Result};

/// One name space: the embedded registry's, or that of pulled and imported images.
#[derive(Debug, Clone)]
pub struct Refs {
    root: PathBuf,
}

impl Refs {
    pub fn open(root: &Path, space: &str) -> Result<Self> {
        let root = root.join("refs").join(space);
        fs::create_dir_all(&root).map_err(Error::io("create refs"))?;
        Ok(Self { root })
    }

    fn dir(&self, repository: &str) -> Result<PathBuf> {
        // A registry part such as `localhost:5000` is allowed as the first component.
        let checked = repository.replace(':', "-");
        if valid_repository(&checked.to_lowercase()) {
            Ok(self.root.join(repository))
        } else {
            Err(Error::BadReference(repository.to_string(), "not a repository name".into()))
        }
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &Digest) -> Result<()> {
        if !valid_tag(tag) {
            return Err(Error::BadReference(tag.to_string(), "not a tag".into()));
        }
        let path = self.dir(repository)?.join("_tags").join(tag);
        write_atomic(&path, digest.to_string().as_bytes()).map_err(Error::io(format!("tag {repository}:{tag}")))
    }

    pub fn resolve(&self, repository: &str, tag: &str) -> Option<Digest> {
        if !valid_tag(tag) {
            return None;
        }
        let text = fs::read_to_string(self.dir(repository).ok()?.join("_tags").join(tag)).ok()?;
        Digest::parse(text.trim()).ok()
    }

    pub fn untag(&self, repository: &str, tag: &str) -> bool {
        valid_tag(tag) && self.dir(repository).is_ok_and(|d| fs::remove_file(d.join("_tags").join(tag)).is_ok())
    }

    /// Says that a manifest belongs to the repository.
    pub fn link(&self, repository: &str, digest: &Digest, media_type: &str) -> Result<()> {
        let path = self.dir(repository)?.join("_manifests").join(digest.hex());
        write_atomic(&path, media_type.as_bytes()).map_err(Error::io(format!("link {repository}@{digest}")))
    }

    /// The media type of a manifest, if the repository has it.
    pub fn linked(&self, repository: &str, digest: &Digest) -> Option<String> {
        fs::read_to_string(self.dir(repository).ok()?.join("_manifests").join(digest.hex())).ok()
    }

    /// Takes a manifest out of the repository, and every tag that points at it.
    pub fn unlink(&self, repository: &str, digest: &Digest) -> bool {
        let Ok(dir) = self.dir(repository) else { return false };
        for tag in self.tags(repository) {
            if self.resolve(repository, &tag).as_ref() == Some(digest) {
                self.untag(repository, &tag);
            }
        }
        fs::remove_file(dir.join("_manifests").join(digest.hex())).is_ok()
    }

    /// In byte order, as distribution-spec wants them.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        self.dir(repository).map(|d| names(&d.join("_tags"))).unwrap_or_default()
    }

    pub fn manifests(&self, repository: &str) -> Vec<Digest> {
        let Ok(dir) = self.dir(repository) else { return Vec::new() };
        names(&dir.join("_manifests")).iter().filter_map(|hex| Digest::parse(&format!("sha256:{hex}")).ok()).collect()
    }

    /// Every repository that has a tag or a manifest, in byte order.
    pub fn repositories(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut queue = vec![String::new()];
        while let Some(name) = queue.pop() {
            for child in names(&self.root.join(&name)) {
                let path = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                match child.as_str() {
                    "_tags" | "_manifests" if !names(&self.root.join(&path)).is_empty() => found.push(name.clone()),
                    "_tags" | "_manifests" => {}
                    _ => queue.push(path),
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    // A dot begins the temporary files of `write_atomic`.
    let mut names: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_manifests_of_a_repository() {
        let dir = tempfile::tempdir().unwrap();
        let refs = Refs::open(dir.path(), "registry").unwrap();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        refs.link("shop/orders", &a, "application/vnd.oci.image.manifest.v1+json").unwrap();
        refs.tag("shop/orders", "1", &a).unwrap();
        refs.tag("shop/orders", "latest", &a).unwrap();
        refs.tag("shop", "x", &b).unwrap();
        assert_eq!(refs.tags("shop/orders"), ["1", "latest"]);
        assert_eq!(refs.repositories(), ["shop", "shop/orders"]);
        assert_eq!(refs.resolve("shop/orders", "1"), Some(a.clone()));
        assert!(refs.unlink("shop/orders", &a));
        assert!(refs.tags("shop/orders").is_empty());
        assert!(refs.tag("../evil", "1", &a).is_err());
        assert!(refs.resolve("shop", "../../x").is_none());
    }
}
