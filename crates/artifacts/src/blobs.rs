//! The content-addressed store: a blob is a file named by its digest, complete and synced before it has that name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::{Digest, Error, Result, limits};

/// `<root>/blobs/sha256/<hex>` and `<root>/uploads/<id>`.
#[derive(Debug, Clone)]
pub struct BlobStore {
    root: PathBuf,
}

impl BlobStore {
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["blobs/sha256", "uploads"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(Error::io(format!("create {}", path.display())))?;
        }
        Ok(Self { root: root.to_path_buf() })
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// The size in bytes, or `None` if the blob is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|m| m.len())
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    pub fn file(&self, digest: &Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NotFound(format!("blob {digest}")),
            _ => Error::Io(format!("open blob {digest}"), e),
        })
    }

    /// A small blob as a whole: manifests and configurations.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.file(digest)?;
        file.take(limits::MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::io(format!("read blob {digest}")))?;
        if bytes.len() as u64 > limits::MANIFEST_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "blob {digest} is larger than {} bytes and cannot be a manifest",
                limits::MANIFEST_BYTES_MAX
            )));
        }
        Ok(bytes)
    }

    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.has(&digest) {
            let mut upload = self.upload(&format!("put-{}", digest.hex()), true)?;
            upload.write_all(bytes).map_err(Error::io("write blob"))?;
            upload.commit(&digest)?;
        }
        Ok(digest)
    }

    /// Opens or continues an upload. `fresh` throws away what an earlier one of this id left.
    pub fn upload(&self, id: &str, fresh: bool) -> Result<Upload> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::Invalid(format!("upload id {id:?} is not valid")));
        }
        let path = self.root.join("uploads").join(id);
        let what = || format!("open upload {id}");
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(Error::io(what()))?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        if fresh {
            file.set_len(0).map_err(Error::io(what()))?;
        } else {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let n = file.read(&mut buffer).map_err(Error::io(what()))?;
                if n == 0 {
                    break;
                }
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
        Ok(Upload { store: self.clone(), path, file, hash, bytes })
    }

    /// Bytes received so far, or `None` if there is no such upload.
    pub fn upload_size(&self, id: &str) -> Option<u64> {
        let name = Path::new(id).file_name()?;
        fs::metadata(self.root.join("uploads").join(name)).ok().map(|m| m.len())
    }

    pub fn drop_upload(&self, id: &str) -> bool {
        Path::new(id).file_name().is_some_and(|name| fs::remove_file(self.root.join("uploads").join(name)).is_ok())
    }

    pub fn remove(&self, digest: &Digest) -> Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::Io(format!("remove blob {digest}"), e)),
            _ => Ok(()),
        }
    }

    /// All blobs with size and age since last change.
    pub fn list(&self) -> Result<Vec<(Digest, fs::Metadata)>> {
        let dir = self.root.join("blobs/sha256");
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list blobs"))? {
            let entry = entry.map_err(Error::io("list blobs"))?;
            if let (Some(name), Ok(meta)) = (entry.file_name().to_str(), entry.metadata())
                && let Ok(digest) = Digest::parse(&format!("sha256:{name}"))
            {
                all.push((digest, meta));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Removes uploads that nobody touched for `limits::UPLOAD_IDLE_MAX`.
    pub fn drop_stale_uploads(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("uploads")) else { return };
        for entry in entries.flatten() {
            let idle = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if idle.is_some_and(|d| d > limits::UPLOAD_IDLE_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A blob on its way in. Dropped without `commit`, what came so far stays for a later continuation.
pub struct Upload {
    store: BlobStore,
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Upload {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn digest_so_far(&self) -> Digest {
        Digest::from_hash(self.hash.clone())
    }

    /// Verifies, syncs and names the blob. On a wrong digest the upload is thrown away.
    pub fn commit(self, expected: &Digest) -> Result<()> {
        let actual = Digest::from_hash(self.hash);
        if actual != *expected {
            let _ = fs::remove_file(&self.path);
            return Err(Error::DigestMismatch { expected: expected.to_string(), actual: actual.to_string() });
        }
        let what = || format!("store blob {expected}");
        self.file.sync_all().map_err(Error::io(what()))?;
        let target = self.store.path(expected);
        fs::rename(&self.path, &target).map_err(Error::io(what()))?;
        sync_dir(target.parent().unwrap_or(&self.store.root)).map_err(Error::io(what()))
    }
}

impl Write for Upload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a rename or a creation in this directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a small file whole or not at all, and durably.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");

        let mut upload = store.upload("u1", true).unwrap();
        upload.write_all(b"hello ").unwrap();
        drop(upload);
        assert!(!store.has(&digest));
        assert_eq!(store.upload_size("u1"), Some(6));

        let mut resumed = store.upload("u1", false).unwrap();
        assert_eq!(resumed.bytes(), 6);
        resumed.write_all(b"world").unwrap();
        resumed.commit(&digest).unwrap();
        assert_eq!(store.read(&digest).unwrap(), b"hello world");
        assert_eq!(store.upload_size("u1"), None);
    }

    #[test]
    fn a_lying_digest_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let mut upload = store.upload("u2", true).unwrap();
        upload.write_all(b"evil").unwrap();
        let err = upload.commit(&Digest::of(b"good")).unwrap_err();
        assert!(matches!(err, Error::DigestMismatch { .. }), "{err}");
        assert!(store.list().unwrap().is_empty());
        assert_eq!(store.upload_size("u2"), None);
        assert!(store.upload("../x", true).is_err());
    }
}
